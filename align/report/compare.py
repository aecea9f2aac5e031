"""Several runs side by side: the settings that differ, the words, the numbers, and paired differences. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from align.errors import UserError
from align.report.figures import Figure, figures
from align.report.paired import Difference, differences
from align.report.record import RunRecord

MISSING = "-"
_NAMES = ("name", "output")  # of a run, not of what it does


@dataclass(frozen=True)
class Row:
    """One line of a table: its name, and a cell for each run."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Paired:
    """How one run differs from the first, item by item; ``note`` says why there is nothing, or what was left out."""

    label: str
    differences: tuple[Difference, ...]
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Runs of one kind side by side.

    ``labels`` are letters that stand for the runs in tables, ``settings`` only those that differ, with the versions and
    the data beside the recipe's keys; ``paired`` has every run but the first, each against the first.
    """

    runs: tuple[RunRecord, ...]
    labels: tuple[str, ...]
    settings: tuple[Row, ...]
    words: tuple[Row, ...]
    numbers: tuple[tuple[str, tuple[Figure | None, ...]], ...]
    paired: tuple[Paired, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; tables go by label."""

        def table(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
            return {row.name: dict(zip(self.labels, row.cells, strict=True)) for row in rows}

        numbers = {
            name: {label: figure.to_json() for label, figure in zip(self.labels, row, strict=True) if figure}
            for name, row in self.numbers
        }
        return {
            "runs": {label: str(run.path) for label, run in zip(self.labels, self.runs, strict=True)},
            "kind": self.runs[0].kind,
            "settings": table(self.settings),
            "verdict": table(self.words),
            "numbers": numbers,
            "paired": {
                one.label: {
                    "against": self.labels[0],
                    "note": one.note,
                    "differences": [d.to_json() for d in one.differences],
                }
                for one in self.paired
            },
            "notes": list(self.notes),
        }


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Raises UserError for fewer than two runs, for one that is named twice, and for runs of different kinds."""
    _check(runs)
    labels = tuple(ascii_uppercase[: len(runs)])
    paired = []
    for label, run in zip(labels[1:], runs[1:], strict=True):
        found, note = differences(runs[0], run)
        paired.append(Paired(label, tuple(found), note))
    return Comparison(
        tuple(runs),
        labels,
        tuple(_settings(runs)),
        tuple(_words(runs)),
        tuple(_numbers(runs)),
        tuple(paired),
        tuple(_notes(runs, labels, paired)),
    )


def _check(runs: Sequence[RunRecord]) -> None:
    if len(runs) < 2:
        named = f"only {runs[0].path} was named" if runs else "none was named"
        raise UserError(f"A comparison needs at least two runs, and {named}.")
    if len(runs) > len(ascii_uppercase):
        raise UserError(f"At most {len(ascii_uppercase)} runs can be compared at a time, and {len(runs)} were named.")
    seen: dict[Path, Path] = {}
    for run in runs:
        place = run.path.resolve()
        if place in seen:
            twice = (
                f"{run.path} is named twice" if run.path == seen[place] else f"{seen[place]} and {run.path} are one run"
            )
            raise UserError(f"{twice}: a comparison with itself shows nothing. Name another run.")
        seen[place] = run.path
    other = next((run for run in runs if run.kind != runs[0].kind), None)
    if other is not None:
        raise UserError(
            f"{runs[0].path} ({runs[0].kind}) and {other.path} ({other.kind}) cannot be compared: runs of these kinds "
            "are measured by different numbers. Compare runs of one kind."
        )


def _settings(runs: Sequence[RunRecord]) -> list[Row]:
    """Keys in the order of a recipe's sections, then what the runs met: data, starting model, device, versions.

    Of a section that some runs do not have at all, what the others say alike is left out but for its first key.
    """
    tables = [dict(_leaves(_listed(run.recipe))) | _met(run) for run in runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    sections = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    several = {key.partition(".1.")[0] for key in keys if ".1." in key}
    rows: list[Row] = []
    begun: set[str] = set()  # sections of which there is a line already
    for key in sorted(keys, key=lambda key: sections.index(key.partition(".")[0])):
        cells = tuple(table.get(key, MISSING) for table in tables)
        if key in _NAMES or len(set(cells)) == 1:
            continue
        above = key.rpartition(".")[0]
        having = {table.get(key, MISSING) for table in tables if any(k.startswith(f"{above}.") for k in table)}
        if above in begun and len(having) == 1:
            continue
        begun.add(above)
        head, zero, tail = key.partition(".0.")  # a list of one is written as the one
        rows.append(Row(f"{head}.{tail}" if zero and head not in several else key, cells))
    return rows


def _listed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with its objective as a list, as several are written."""
    objective = recipe.get("objective")
    return {**recipe, "objective": objective if isinstance(objective, list) else [objective]}


def _leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Dotted keys of all leaves, and their values as a recipe writes them."""
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and value:
        below = [_leaves(one, f"{path}.{key}" if path else str(key)) for key, one in value.items()]
        return [leaf for leaves in below for leaf in leaves]
    if isinstance(value, list):
        return [(path, ", ".join(map(_written, value)) or MISSING)]
    return [(path, MISSING if value is None or value == {} else _written(value))]


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _met(run: RunRecord) -> dict[str, str]:
    """What the lock file knows beside the recipe. A digest differs where the content does, under the same name."""
    found = {}
    for name, key in (("data (digest)", "data"), ("start or reference (digest)", "reference")):
        if run.lock.get(key):
            found[name] = str(run.lock[key])[:8]
    found |= {name: str(run.lock[name]) for name in ("device", "processes", "distributed") if name in run.lock}
    versions = run.lock.get("versions")
    return found | {
        f"version of {name}": str(one) for name, one in (versions if isinstance(versions, dict) else {}).items()
    }


def _words(runs: Sequence[RunRecord]) -> list[Row]:
    tables = [(run.verdict or {}).get("findings") or {} for run in runs]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        cells = tuple(str((table.get(name) or {}).get("word") or MISSING) for table in tables)
        if set(cells) != {MISSING}:  # such as of "next", which is advice
            rows.append(Row(name, cells))
    return rows


def _numbers(runs: Sequence[RunRecord]) -> list[tuple[str, tuple[Figure | None, ...]]]:
    tables = [{figure.name: figure for figure in figures(run)} for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    return [(name, tuple(table.get(name) for table in tables)) for name in names]


def _notes(runs: Sequence[RunRecord], labels: Sequence[str], paired: Sequence[Paired]) -> list[str]:
    out = [
        f"{label} {'was stopped before its end' if run.facts.get('stopped') else 'has not ended'}: its numbers are of "
        f"step {run.steps:,} or earlier."
        for label, run in zip(labels, runs, strict=True)
        if not run.finished
    ]
    out += [f"{one.label} - {labels[0]}: {one.note}." for one in paired if one.note]
    intervals = sum(len(one.differences) for one in paired)
    if intervals:
        out.append(
            f"{intervals} paired intervals of 95 %, none adjusted for their number: of so many, {intervals * 0.05:.1f} "
            "leave out 0 by chance alone where no run differs."
        )
        out.append("Each run is one seed: the intervals are about items, and know nothing of other seeds.")
    seeds = {str(run.recipe.get("seed")) for run in runs}
    if len(seeds) > 1:
        out.append("The runs have different seeds, so their probes drew different pairs; only shared ones are paired.")
    return [*out, *(note for run in runs for note in run.notes)]
