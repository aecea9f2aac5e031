"""``align compare RUN RUN...``: runs of one kind side by side, in the terminal."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.cli.verbs import Verb, path
from align.errors import Exit
from align.runs.terminal import echo

_LONGEST = 100  # characters of a setting

if TYPE_CHECKING:
    from align.report.compare import Comparison


def _compare(args: argparse.Namespace) -> int:
    from align.report.compare import compare
    from align.runs.record import load_run

    found = compare([load_run(run) for run in args.runs])
    if args.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        echo("\n".join(lines(found, shutil.get_terminal_size().columns)))
    return Exit.OK


def lines(found: Comparison, width: int) -> list[str]:
    """The comparison as text; tables that are wider than ``width`` give every cell a line of its own."""
    runs = zip(found.labels, found.runs, strict=True)
    out = [f"{label}  {run.path}   {run.kind}, {run.steps:,} steps" for label, run in runs]
    settings = [(row.name, *map(_cell, row.cells)) for row in found.settings]
    words = [(row.name, *map(_cell, row.cells)) for row in found.words]
    out += ["", *table("Settings that differ", found.labels, settings, width)]
    out += [] if settings else ["  none: the runs differ in their names alone"]
    out += ["", *table("Verdict", found.labels, words, width)] if words else []
    numbers = [
        (
            _named(name, next(figure.unit for figure in row if figure)),
            *(figure.text if figure else "-" for figure in row),
        )
        for name, row in found.numbers
    ]
    out += ["", *table("Numbers at the end [95 % interval]", found.labels, numbers, width)] if numbers else []
    for one in found.paired:
        if one.differences:
            names = (f"{one.label} - {found.labels[0]}", "n", "")
            shown = [(_named(d.what, d.unit), d.text, str(d.interval.n), d.word) for d in one.differences]
            out += ["", *table("Paired differences", names, shown, width)]
    return [*out, "", *(f"  {note}" for note in found.notes)]


def table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines under a title and the columns' names; the first cell of a row is its name.

    Where lines would be wider than ``width``, names stand above their cells; cells that are wider than their column
    have a line each, behind the column's name.
    """
    room = (width - 4) // len(names) - 2
    narrow = [row for row in rows if max(map(len, row[1:])) <= room]
    sizes = [max(map(len, column)) for column in zip(names, *(row[1:] for row in narrow), strict=True)]
    first = max([len(title), *(len(row[0]) + 2 for row in narrow)])
    beside = first + sum(size + 2 for size in sizes) <= width

    def cells(values: Sequence[str]) -> str:
        return "  ".join(value.ljust(size) for value, size in zip(values, sizes, strict=True)).rstrip()

    out = [f"{title:<{first}}  {cells(names)}"] if beside else [title, f"    {cells(names)}"]
    for row in rows:
        if row not in narrow:
            pairs = zip(names, row[1:], strict=True)
            out += [f"  {row[0]}", *(f"    {name:<{max(map(len, names))}}  {cell}".rstrip() for name, cell in pairs)]
        elif beside:
            out.append(f"{f'  {row[0]}':<{first}}  {cells(row[1:])}")
        else:
            out += [f"  {row[0]}", f"    {cells(row[1:])}"]
    return out


def _cell(text: str) -> str:
    """A value on one line, without what a terminal would obey, and cut where it is long."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _named(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


COMPARE = Verb(
    "compare",
    "show runs side by side: the settings that differ, verdicts, numbers and paired differences",
    ("align compare runs/dpo runs/rpo", "align compare runs/seed0 runs/seed1 runs/seed2 --json"),
    _compare,
    (path("runs", metavar="RUN", nargs="+", help="a run's directory; the first is what the others are compared with"),),
)
