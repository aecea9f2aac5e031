"""`align launch`: a recipe over several processes, under the launcher configuration that is named or that fits."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from align.cli.verbs import ALLOW_CODE, ANYWAY, RECIPE, RESUME, Verb, argument, flag, path
from align.errors import UserError

if TYPE_CHECKING:
    from align.runs.launcher import Configuration


def _launch(args: argparse.Namespace) -> int:
    from align.cli.plan import placed
    from align.recipe import load_recipe
    from align.runs.launcher import command, configuration, run
    from align.runs.models import require_model

    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: expected a whole number of 1 or more.")
    recipe = load_recipe(args.file, args.overrides, allow_code=args.allow_code)
    if not (args.on and args.dry_run):  # a command that is only shown may be for a machine that has the model
        require_model(recipe.model, recipe.base)
    choice = placed(recipe, args.processes) if args.on is None else None
    chosen = configuration(choice.name if choice else args.on)
    processes = choice.processes if choice else _count(chosen, args)
    given = {"--resume": args.resume, "--allow-code": args.allow_code, "--anyway": args.anyway}
    flags = [word for word, wanted in given.items() if wanted]
    found = command(chosen, processes, [args.file, *args.overrides, *flags])
    if not args.json:
        print(*([f"{choice.name}: {choice.reason}"] if choice else []), found.line(), sep="\n", flush=True)
        if chosen.on_cpu and chosen.deepspeed and not args.dry_run:
            print("At its first start on a CPU DeepSpeed compiles for a minute or more, and says nothing.", flush=True)
    here = ["--on", chosen.name, "--processes", str(processes)]
    started = ["align", "launch", args.file, *args.overrides, *here, *flags]
    out = sys.stderr if args.json else None
    code = 0 if args.dry_run else run(found, recipe.output_dir, started, stdout=out)
    if args.json:
        print(json.dumps({"on": chosen.name, "processes": processes, "command": found.line(), "exit_code": code}))
    return code


def _count(chosen: Configuration, args: argparse.Namespace) -> int:
    """The number of processes; a command that is only shown may be for another machine."""
    from align.runs.memory import accelerators

    shown = args.processes if args.dry_run else None
    return chosen.count(args.processes, 0 if chosen.on_cpu else shown or len(accelerators()))


LAUNCH = Verb(
    "launch",
    "run one recipe over several processes, as accelerate launch does",
    (
        "align launch my.yaml",
        "align launch preference/dpo-zephyr-7b --on zero3 --processes 8",
        "align launch my.yaml --on cpu2-fsdp2 train.max_steps=3 --dry-run",
    ),
    _launch,
    (
        *RECIPE,
        path("--on", metavar="NAME", help="a configuration of recipes/accelerate, or a file; by default what fits"),
        argument("--processes", metavar="N", type=int, help="by default one for each accelerator"),
        RESUME,
        ANYWAY,
        ALLOW_CODE,
        flag("--dry-run", "print the command and start nothing"),
    ),
)
