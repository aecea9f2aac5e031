"""A chart over steps as a value: its lines, their limits, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from align.report.figures import shown as number
from align.report.ink import CARD, DASHED, FONT, MUTED, line_style, style
from align.stats import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BUCKETS = 250  # of a line's width, each with its lowest and its highest point
_SMOOTH_FROM = 60  # points from which a noisy line has the mean of its neighbours in front of it
_NEIGHBOURS = 40  # the mean is over one such part of the line
_STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten
_DECADES = 20  # between the largest and the smallest value, from where on an axis may be logarithmic
_LARGEST = 3.5e38  # more than a measurement in float32 can be; axes overflow at the ends of float64
_SMALLEST = 1e-38  # of a logarithmic axis, likewise
_MARKED = 30  # up to so many points are marked


@dataclass(frozen=True)
class Series:
    """One line: values [n] at steps [n], and where they are known the ends of their 95 % intervals [n].

    ``style`` is the number of its colour and dashes. ``noisy`` values are means over few rows.
    """

    label: str
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: int = 0
    noisy: bool = False

    @property
    def last(self) -> float:
        return float(self.values[-1])

    def says(self) -> str:
        """The line in words, for those who do not see it."""
        first, last = f"{number(self.values[0])} at {self.steps[0]:g}", f"{number(self.last)} at {self.steps[-1]:g}"
        ends = f"lowest {number(self.values.min())}, highest {number(self.values.max())}"
        return f"{self.label}: {first}, {last}, {ends}" if len(self.values) > 1 else f"{self.label}: {first}"


@dataclass(frozen=True)
class Limit:
    """A horizontal line that is no measurement, with the few words that stand at it, if any."""

    value: float
    text: str


@dataclass(frozen=True)
class Panel:
    """A chart: ``about`` says in one line what is drawn, ``unit`` stands beside its title, ``x`` below it."""

    title: str
    about: str
    unit: str
    series: tuple[Series, ...]
    limits: tuple[Limit, ...] = ()
    log: bool = False  # where values are of very different sizes
    x: str = "step"

    def says(self) -> str:
        """The chart in words."""
        limits = [f"{limit.text}: {number(limit.value)}" for limit in self.limits if limit.text]
        return f"{self.title} ({self.unit}). " + ". ".join([*(one.says() for one in self.series), *limits]) + "."

    def draw(self, axes: Axes) -> None:
        """Draw it, without title and legend."""
        from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

        values = np.concatenate([one.values for one in self.series])
        if self.log and values.min() > _SMALLEST and values.max() > _DECADES * values.min():
            axes.set_yscale("log")
            axes.minorticks_off()
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        digits = _digits(values)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.{digits}g}"))
        steps = np.concatenate([one.steps for one in self.series])
        alone = steps.min() == steps.max()  # between whole steps there is nothing to mark
        locator = FixedLocator([float(steps[0])]) if alone else MaxNLocator(5, steps=_STEPS, integer=True)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        for one in self.series:
            _draw_series(axes, one)
        for limit in self.limits:
            axes.axhline(limit.value, color=MUTED, lw=1, ls=line_style(DASHED), zorder=1)
        axes.margins(x=0.02)
        bottom, top = axes.transData.transform([(0, y) for y in axes.get_ylim()])[:, 1]
        place = axes.get_yaxis_transform()  # across the axes, and up by values
        for limit in self.limits:
            if not limit.text:
                continue
            # under a line at the top, where a label above it would run into the legend
            high = (axes.transData.transform((0, limit.value))[1] - bottom) / (top - bottom) > 0.85
            under = "top" if high else "bottom"
            label = axes.text(1, limit.value, limit.text, transform=place, ha="right", va=under, zorder=4)
            label.set(fontsize=FONT - 1, color=MUTED, bbox={"facecolor": CARD, "lw": 0, "alpha": 0.8, "pad": 1})
        axes.set_xlabel(self.x)


def read(
    records: Iterable[Mapping[str, Any]], key: str, label: str, *, style: int = 0, noisy: bool = False, x: str = "step"
) -> Series | None:
    """The line of a value of ``metrics.jsonl``; None where no record has it.

    ``key`` is a name of the record, or ``part/name`` where ``part`` is a reading in it; an interval stands for its
    estimate and its ends, a list for its mean. What is no finite number, or beyond float32, is left out.
    """
    part, _, inner = key.partition("/")
    found: list[tuple[float, float, float, float]] = []
    for record in records:  # there may be a hundred thousand of them
        value = record.get(key)
        if value is None and inner and isinstance(record.get(part), dict):
            value = record[part].get(inner)
        if value is None:
            continue
        low = high = math.nan
        if isinstance(value, dict):
            low, high, value = _number(value.get("low")), _number(value.get("high")), value.get("value")
        elif isinstance(value, list) and value:
            value = sum(map(_number, value)) / len(value)
        found.append((_number(record.get(x)), _number(value), low, high))
    table = np.array(found).reshape(-1, 4)
    steps, values, low_ends, high_ends = table[np.isfinite(table[:, :2]).all(axis=1)].T
    if not len(values):
        return None
    banded = bool(np.isfinite(low_ends).any() and np.isfinite(high_ends).any())
    return Series(label, steps, values, low_ends if banded else None, high_ends if banded else None, style, noisy)


def _number(value: Any) -> float:
    """What JSON holds as a number that can be drawn; anything else is not a number."""
    found = None if isinstance(value, bool) else finite(value)
    return math.nan if found is None or abs(found) > _LARGEST else found


def _digits(values: np.ndarray) -> int:
    """Digits that tell the ticks of an axis from one another: more where values are close together."""
    width, largest = float(np.ptp(values)), float(np.abs(values).max())
    return max(4, 2 + math.ceil(math.log10(largest / width))) if width > 0 else 4


def overlaid(panels: Mapping[str, Sequence[Panel]]) -> list[Panel]:
    """The same panels of several runs in one: a chart for each quantity, in it a line for each run that has it.

    ``panels`` are those of each run, by what the run is called; its place among them is its colour and its dashes.
    Limits that are not those of all of them are left out.
    """
    merged: dict[tuple[str, str], Panel] = {}
    labels: dict[str, set[str]] = {}
    for panel in (panel for own in panels.values() for panel in own):
        labels.setdefault(panel.title, set()).update(one.label for one in panel.series)
    for place, (run, own) in enumerate(panels.items()):
        for panel in own:
            for one in panel.series:
                key = (panel.title, one.label)
                line = replace(one, label=run, style=place)
                title = panel.title if len(labels[panel.title]) == 1 else f"{panel.title}: {one.label}"
                earlier = merged.get(key) or replace(panel, title=title, series=())
                shared = tuple(limit for limit in earlier.limits if limit in panel.limits)
                merged[key] = replace(earlier, series=(*earlier.series, line), limits=shared)
    return list(merged.values())


def thin(values: np.ndarray, buckets: int = BUCKETS) -> np.ndarray:
    """Indices of ``values`` [n] that a line needs: first, last, and the lowest and the highest of each bucket."""
    if len(values) <= 2 * buckets:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), buckets + 1).astype(int)
    kept = {0, len(values) - 1}
    for begin, end in pairwise(edges):
        kept |= {begin + int(values[begin:end].argmin()), begin + int(values[begin:end].argmax())}
    return np.array(sorted(kept))


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours, fewer of them at the ends."""
    half = max(1, len(values) // (2 * _NEIGHBOURS))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    begin, end = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (sums[end] - sums[begin]) / (end - begin)


def _draw_series(axes: Axes, one: Series) -> None:
    colour, dashes = style(one.style)
    behind = one.noisy and len(one.values) >= _SMOOTH_FROM
    if behind:
        kept = thin(one.values)
        axes.plot(one.steps[kept], one.values[kept], color=colour, lw=0.8, alpha=0.3, zorder=2)
    line = smooth(one.values) if behind else one.values
    kept = thin(line)
    if one.low is not None and one.high is not None and not behind:
        axes.fill_between(one.steps[kept], one.low[kept], one.high[kept], color=colour, alpha=0.15, lw=0, zorder=2)
    marker = "o" if len(line) <= _MARKED else None
    axes.plot(one.steps[kept], line[kept], color=colour, ls=line_style(dashes), marker=marker, ms=3.5, zorder=3)
