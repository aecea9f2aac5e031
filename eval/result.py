"""What a suite computed from a log: values, intervals of means, and what could not be computed and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from align.stats import Interval, bootstrap_mean, finite

FEWEST = 30  # rows below which a limited log has no metric that compares two samples


@dataclass
class Result:
    """Metrics by name. ``intervals`` are 95% intervals of means over items; other statistics have none.

    ``missing`` says for each metric that could not be computed what it lacks, ``notes`` what a reader must know.
    ``settings`` are the choices that the values depend on, ``name`` is the log's. ``limit`` is the log's, too: the
    number of rows of each set of a trial, whose values are no result. ``items`` are what means are over, by
    the names of both, for paired comparisons of two results.
    """

    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    limit: int | None = None
    items: dict[str, dict[str, float]] = field(default_factory=dict)

    def add_mean(self, name: str, items: np.ndarray | None, why: str, seed: int | None) -> None:
        """Enter the mean of ``items`` [n] or [n, k] with its interval (none where ``seed`` is None), or ``why`` not.

        Items that are not a number are left out, and a note says how many.
        """
        if items is None:
            self.missing[name] = why
            return
        known = items[~np.isnan(items).reshape(len(items), -1).any(axis=1)]
        if len(known) < len(items):
            self.notes.append(f"{name} is over {len(known)} of {len(items)} items; the others hold no number")
        if not len(known):
            self.missing[name] = "no item holds a number"
            return
        self.values[name] = float(known.mean())
        each = items.reshape(len(items), -1).mean(axis=1)
        self.items[name] = {str(row): float(value) for row, value in enumerate(each) if not np.isnan(value)}
        if seed is not None:
            self.intervals[name] = bootstrap_mean(known.reshape(len(known), -1).mean(axis=1), seed)

    def add_harmonic(self, name: str, parts: Iterable[str]) -> None:
        """Enter the harmonic mean of metrics that are there already; 0 where one of them is 0."""
        names = list(parts)
        lacking = [part for part in names if part not in self.values]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            self.missing[name] = f"needs {', '.join(lacking[:3])}{more}"
            return
        values = [self.values[part] for part in names]
        self.values[name] = len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0

    def drop_small(self, names: Iterable[str]) -> None:
        """Leave out metrics that compare two samples where a trial has too few rows for any."""
        if self.limit is None or self.limit >= FEWEST:
            return
        for name in names:
            if name in self.values:
                del self.values[name]
                self.intervals.pop(name, None)
                self.missing[name] = f"needs at least {FEWEST} rows; {mark(self.limit)}"

    def order(self, names: Iterable[str]) -> None:
        """Put values, intervals and what is missing in the order of ``names``; others follow."""
        for table in (self.values, self.intervals, self.missing):
            entries: dict[str, Any] = dict(table)
            table.clear()
            table.update({name: entries.pop(name) for name in names if name in entries} | entries)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a value that is not finite is null."""
        return {
            "name": self.name,
            **self.settings,
            "metrics": {name: finite(value) for name, value in self.values.items()},
            "intervals": {name: interval.to_json() for name, interval in self.intervals.items()},
            "missing": dict(self.missing),
            "notes": list(self.notes),
            **limited(self.limit),
        }

    def headline(self) -> list[str]:
        """The first lines for the terminal."""
        return [self.name]

    def lines(self) -> list[str]:
        """A table for the terminal: value, interval and items of each metric, then what is missing, then notes."""
        width = max([len("metric"), *map(len, self.values)])
        marked = [] if self.limit is None else [mark(self.limit)]
        out = [
            *marked,
            *self.headline(),
            "",
            *marked,
            f"{'metric':<{width}}  {'value':>10}  {'95% interval':^20}  items",
        ]
        for name, value in self.values.items():
            interval = self.intervals.get(name)
            span = f"{interval.low:.4f} to {interval.high:.4f}" if interval else ""
            out.append(f"{name:<{width}}  {number(value):>10}  {span:^20}  {interval.n if interval else ''}".rstrip())
        reasons: dict[str, list[str]] = {}
        for name, why in self.missing.items():
            reasons.setdefault(why, []).append(name)
        if reasons:
            out += ["", "not computed", *(f"  {', '.join(names)}: {why}" for why, names in reasons.items())]
        if self.notes:
            out += ["", "notes", *(f"  {note}" for note in self.notes)]
        return out


def limited(limit: int | None) -> dict[str, Any]:
    """What marks a trial on the first rows in JSON; nothing where all rows were asked."""
    return {} if limit is None else {"limit": limit, "limited": mark(limit)}


def mark(limit: int) -> str:
    """The sentence that stands beside everything that a trial gives."""
    return f"limited to {limit:,} row{'s' * (limit != 1)}: no result"


def number(value: float) -> str:
    """``value`` with four decimals, or in powers of ten where those would show zeros only."""
    return f"{value:.3e}" if value and abs(value) < 1e-4 else f"{value:.4f}"
