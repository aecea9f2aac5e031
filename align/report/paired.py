"""Differences between two runs on the same items, item by item. Imports no torch.

A difference is taken for each item that both runs were asked, and the bootstrap draws items: what makes an item hard
for both runs cancels, so far smaller differences are seen than between two separate intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.report.figures import PER_ANSWER, read_again, readings, scores, spanned
from align.report.record import RunRecord
from align.report.suites import items, suite_results
from align.report.thresholds import FEW_PAIRS
from align.stats import Interval, bootstrap_mean, finite

_SEED = 0
# metrics of an unlearning suite that are means over items: name, set, entry and column of the log
_ITEMS = (
    ("probability of forgotten answers", "forget", "forget_Q_A_Prob", "prob"),
    ("ROUGE of forgotten answers", "forget", "forget_Q_A_ROUGE", "rougeL_recall"),
    ("probability of retained answers", "retain", "retain_Q_A_Prob", "prob"),
    ("ROUGE of retained answers", "retain", "retain_Q_A_ROUGE", "rougeL_recall"),
    ("probability on real authors", "ra", "ra_Q_A_Prob_normalised", "prob"),
    ("probability on world facts", "wf", "wf_Q_A_Prob_normalised", "prob"),
)

Columns = Mapping[tuple[str, str], Mapping[str, float]]  # by measure and unit: values by item


@dataclass(frozen=True)
class Difference:
    """``what`` of a run minus that of the first run, over ``interval.n`` items of both; of ``of`` items in all."""

    what: str
    interval: Interval
    of: int
    unit: str = ""

    @property
    def word(self) -> str:
        """Whether the interval of 95 % leaves 0 out, so that a difference is shown; too few items say nothing."""
        if self.interval.n < FEW_PAIRS:
            return "too few to say"
        return "not shown" if self.interval.low <= 0 <= self.interval.high else "differs"

    @property
    def text(self) -> str:
        """The difference with its interval."""
        return spanned(self.interval)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"what": self.what, **self.interval.to_json(), "of": self.of, "unit": self.unit, "word": self.word}


def differences(first: RunRecord, other: RunRecord) -> tuple[list[Difference], str]:
    """What ``other`` has more than ``first``, and a clause on why there is nothing, or on what was left out."""
    found, note = _of_kind(first, other)
    shared, left = _of_suites(first, other)
    return [*found, *shared], "; ".join(text for text in (note, *left) if text)


def _of_suites(first: RunRecord, other: RunRecord) -> tuple[list[Difference], list[str]]:
    """Differences on the items of suites that both runs were measured with, and clauses on what cannot be paired."""
    found, left = [], []
    mine, theirs = suite_results(first), suite_results(other)
    for name in [name for name in mine if name in theirs]:
        a, b = mine[name], theirs[name]
        if any(a.get(key) != b.get(key) for key in ("settings", "asked")):
            left.append(f"suite {name} was measured otherwise, so its items are not paired")
            continue
        both = ({(f"{name}: {what}", ""): table for what, table in items(one).items()} for one in (a, b))
        pairs, note = _paired(*both)
        found += pairs
        left += [f"suite {name}: {note}"] if note and items(a) else []
    return found, left


def _of_kind(first: RunRecord, other: RunRecord) -> tuple[list[Difference], str]:
    """Differences on what runs of their kind record item by item."""
    read: dict[str, Callable[[RunRecord], Columns | str]] = {"preference": _pairs, "unlearning": _items}
    if first.kind not in read:
        return [], "runs of this kind record nothing item by item"
    both = [read[first.kind](record) for record in (first, other)]
    for record, columns in zip((first, other), both, strict=True):
        if isinstance(columns, str):
            return [], f"{record.path} {columns}"
    return _paired(*both)  # type: ignore[arg-type]


def _paired(first: Columns, other: Columns) -> tuple[list[Difference], str]:
    found, left = [], 0
    for measure in [measure for measure in first if measure in other]:
        mine, theirs = first[measure], other[measure]
        values = np.array([theirs[key] - mine[key] for key in mine if key in theirs])
        known = values[np.isfinite(values)]
        left = max(left, len(values) - len(known))
        if len(known) > 1:
            what, unit = measure
            found.append(Difference(what, bootstrap_mean(known, _SEED), len({*mine, *theirs}), unit))
    if not found:
        return [], "no two of their items are the same"
    count = "1 item" if left == 1 else f"{left:,} items"
    return found, f"{count} without a finite value left out" if left else ""


def _pairs(record: RunRecord) -> Columns | str:
    """Of the probe's pairs, by their digest: changes since the start, and whether the chosen answer gained more."""
    probe = record.probe or {}
    rows, start, end = probe.get("rows"), probe.get("start"), probe.get("end")
    if not isinstance(rows, Sequence) or not isinstance(start, Mapping) or not isinstance(end, Mapping):
        return "records no scores pair by pair (no probe, an end that was not reached, or an earlier version)"
    if readings(record, "probe") and not read_again(record, "probe"):
        return "has not read its pairs since the start"
    sides = [_array(scored.get(side)) for scored in (start, end) for side in ("chosen", "rejected")]
    if any(len(side) != len(rows) for side in sides):
        return "has a damaged probe.json: its scores and its rows differ in number"
    chosen, rejected = sides[2] - sides[0], sides[3] - sides[1]
    with np.errstate(invalid="ignore"):
        ordered = np.where(np.isfinite(chosen - rejected), np.sign(chosen - rejected) / 2 + 0.5, np.nan)
    columns = {
        ("change of chosen answers", PER_ANSWER): chosen,
        ("change of rejected answers", PER_ANSWER): rejected,
        ("change of the margin", PER_ANSWER): chosen - rejected,
        ("share of pairs ordered right", ""): ordered,
    }
    return {measure: dict(zip(map(str, rows), values.tolist(), strict=True)) for measure, values in columns.items()}


def _items(record: RunRecord) -> Columns | str:
    """Of the suite's last log, by what was asked."""
    columns: dict[tuple[str, str], dict[str, float]] = {}
    for what, name, entry, column in _ITEMS:
        asked = _asked(record, f"{name}_Q_A_ROUGE")
        values = scores(record, entry, column)
        columns[what, ""] = {f"{index} {asked.get(index, '')}": value for index, value in values.items()}
    return columns if any(columns.values()) else "has no evaluation item by item (eval/TOFU_EVAL.json)"


def _asked(record: RunRecord, entry: str) -> dict[str, str]:
    """The question and the true answer of each item."""
    table = record.evaluations.get("TOFU_EVAL", {}).get(entry)
    items = table.get("value_by_index") if isinstance(table, Mapping) else None
    pairs = items.items() if isinstance(items, Mapping) else ()
    return {index: f"{one.get('input')}{one.get('ground_truth')}" for index, one in pairs if isinstance(one, Mapping)}


def _array(values: Any) -> np.ndarray:
    """Numbers as an array; what is none, or not finite, is not a number."""
    numbers = map(finite, values if isinstance(values, list) else [])
    return np.array([np.nan if value is None else value for value in numbers], dtype=np.float64)
