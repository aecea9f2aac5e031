"""What was measured on held-out rows and by suites, each value with its interval and its change since the start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from align.report.figures import figures
from align.report.figures import shown as number
from align.report.page.blocks import Block, Points, Section, Table, Text
from align.report.record import RunRecord
from align.report.suites import suite_results, values
from align.stats import Interval, finite

_HEADER = ("", "value", "95 % interval", "n", "start", "change")


def evaluation(run: RunRecord) -> Section:
    """The numbers at the end of a run, the last reading of its suite, attacks, and what else lies in ``eval/``."""
    blocks: list[Block] = []
    if rows := [
        row(f"{one.name} ({one.unit})" if one.unit else one.name, one.value, one.interval, one.start)
        for one in figures(run)
    ]:
        blocks.append(Table(_HEADER, rows))
    first, last = _suite(run)
    if last is not None:
        title = f"All metrics of the test suite at step {last.get('step')}"
        blocks.append(Table(_HEADER, metric_rows(last, first), title=title, folded=True))
    for name, found in run.evaluations.items():
        if isinstance(found.get("attacks"), list):
            blocks += _attacks(found)
        elif isinstance(found.get("metrics"), Mapping) and not re.fullmatch(r"step-\d+", name):
            blocks.append(Table(_HEADER, metric_rows(found, None), title=name))
    for name, found in suite_results(run).items():
        rows = [row(what, value, span, None) for what, value, span in values(found)]
        blocks.append(Table(_HEADER, rows, title=f"All values of the suite {name}", folded=True))
        if notes := [f"{name}: {note}" for note in found.get("notes") or ()]:
            blocks.append(Points(notes))
    return Section("Evaluation", blocks or [Text("Nothing was evaluated beside the curves.", quiet=True)])


def row(name: str, value: float, span: Interval | None, start: float | None) -> tuple[str, ...]:
    """A row of the table; what is not known is a dash."""
    ends = "-" if span is None else f"{number(span.low)} to {number(span.high)}"
    change = "-" if start is None else f"{'+' if value >= start else ''}{number(value - start)}"
    before = "-" if start is None else number(start)
    return (name, number(value), ends, "-" if span is None else f"{span.n:,}", before, change)


def metric_rows(found: Mapping[str, Any], start: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    """All metrics of a suite's result, beside those of ``start``."""
    intervals, before = found.get("intervals") or {}, (start or {}).get("metrics") or {}
    values = {name: value for name, one in found["metrics"].items() if (value := finite(one)) is not None}
    return [
        row(name, value, Interval.from_json(intervals.get(name)), finite(before.get(name)))
        for name, value in values.items()
    ]


def _suite(run: RunRecord) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The first and the last result of the suite that ran during training; the first only where there are two."""
    named = [(re.fullmatch(r"step-(\d+)", name), found) for name, found in run.evaluations.items()]
    steps = {int(step[1]): found for step, found in named if step and isinstance(found.get("metrics"), Mapping)}
    if not steps:
        return None, None
    return (steps[min(steps)] if len(steps) > 1 else None), steps[max(steps)]


def _attacks(found: Mapping[str, Any]) -> list[Block]:
    """What relearning, rounding, other questions and many samples brought back."""
    rows = []
    for attack in found["attacks"]:
        spans = {key: Interval.from_json(span) for key, span in (attack.get("rise") or {}).items()}
        rises = [f"{key} {number(s.value)} [{number(s.low)}, {number(s.high)}]" for key, s in spans.items() if s]
        rows.append((str(attack.get("name")), str(attack.get("word")), "; ".join(rises), str(attack.get("rows"))))
    table = Table(("attack", "word", "rise, with 95 % interval", "rows"), rows, title="Does it stay forgotten")
    untested = [f"Not tested: {text}" for text in found.get("untested") or ()]
    return [table, *([Points(untested)] if untested else [])]
