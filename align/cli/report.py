"""``align report RUN...``: a page and a picture of a run, or of several runs of one kind."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from align.cli.verbs import Verb, path
from align.errors import Exit, UserError
from align.runs.terminal import echo


def _report(args: argparse.Namespace) -> int:
    from align.runs.record import load_run
    from align.runs.report import write_report

    if args.out and Path(args.out).is_file():
        raise UserError(f"--out {args.out} is a file; name a folder.")
    runs = [load_run(run) for run in args.runs]
    usual = runs[0].path if len(runs) == 1 else Path()
    written = write_report(runs, Path(args.out) if args.out else usual)
    if args.json:
        echo(json.dumps({file.suffix.removeprefix("."): str(file) for file in written}, indent=1))
        return Exit.OK
    for note in (note for run in runs for note in run.notes):
        echo(f"warning: {note}")
    echo(f"report  {' and '.join(map(str, written))}")
    return Exit.OK


REPORT = Verb(
    "report",
    "write a page and a picture of a run, or of several runs of one kind",
    ("align report runs/dpo", "align report runs/dpo runs/flex runs/rpo --out comparison"),
    _report,
    (
        path("runs", metavar="RUN", nargs="+", help="a run's directory; several make a comparison"),
        path("--out", metavar="FOLDER", help="by default the run's directory; of several runs, the current folder"),
    ),
)
