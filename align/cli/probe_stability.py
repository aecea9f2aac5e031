"""``align probe stability``. The work is imported only when called."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from align.cli.verbs import argument, path
from align.errors import Exit, UserError
from align.runs.directory import write_atomically
from align.runs.terminal import echo

ARGUMENTS = (
    path("--pairs", metavar="FILE", required=True, help="preference pairs: any file or folder that align reads"),
    argument("--rows", metavar="N", type=int, help="only N pairs, drawn by the seed"),
    argument("--seed", metavar="SEED", type=int, default=0, help="which pairs, and what is rewritten; 0 by default"),
    path("--out", metavar="FILE", help="write the result as JSON"),
)


def run_stability(args: argparse.Namespace) -> int:
    """``align probe stability``."""
    if args.rows is not None and args.rows < 1:
        raise UserError(f"--rows: must be at least 1, got {args.rows}.")
    if args.out and not Path(args.out).parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {Path(args.out).parent}.")
    from align.cli.probe import load, say_of
    from align.eval.stability import measure, read_pairs

    say = say_of(args)
    pairs = read_pairs(args.pairs, args.rows, args.seed, say)  # before the weights, which take longer
    found = measure(pairs, load(args).score, args.seed, say)
    text = json.dumps(found.to_json(), indent=1)
    if args.out:
        write_atomically(Path(args.out), text + "\n")
    echo(text if args.json else "\n".join(["", *found.lines()]))
    return Exit.OK
