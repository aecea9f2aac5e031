"""``align export``: what a run learned as a folder that others load."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial

from align.cli.verbs import Verb, argument, flag, path
from align.errors import Exit
from align.runs.quiet import calm
from align.runs.terminal import echo


def _export(args: argparse.Namespace) -> int:
    calm()
    from align.export.export import export_run

    say = partial(echo, file=sys.stderr if args.json else sys.stdout)
    made = export_run(
        args.run_or_folder,
        args.out,
        merge=args.merge,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        replaces=args.replace,
        load_check=not args.no_load_check,
        say=say,
    )
    if args.json:
        print(json.dumps(made.to_json(), indent=1))
        return Exit.OK
    if made.base_model is None and made.kind == "adapter":
        say(
            "note: adapter_config.json names the model under the adapter as a folder of this machine; whoever loads it "
            "elsewhere must name theirs"
        )
    many = f"{len(made.files)} files, {made.bytes / 1e6:,.1f} MB, {made.dtype}"
    say(f"\nDone.  {made.folder}   {many}; licence of the base model: {made.licence}")
    return Exit.OK


EXPORT = Verb(
    "export",
    "write what a run learned as a folder that transformers and peft load: an adapter, merged weights, or a model",
    ("align export runs/first --merge", "align export runs/first/checkpoint-200 --out adapters/first"),
    _export,
    (
        path("run_or_folder", metavar="RUN", help="a run, one of its checkpoints, or a folder with a model or adapter"),
        flag("--merge", "put the adapter into the weights of its model, and check that nothing changed"),
        argument(
            "--dtype",
            choices=("float32", "checkpoint"),
            help="type of whole weights; checkpoint: the base model's, which merged weights have by default",
        ),
        argument("--max-shard-size", metavar="SIZE", help="most bytes of a file of weights, such as 5GB"),
        path("--out", metavar="FOLDER", help="by default export or merged in the run, or beside another folder"),
        flag("--replace", "write an earlier export of the same model anew"),
        flag("--no-load-check", "do not load the result in another process"),
    ),
)
