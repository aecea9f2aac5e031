"""How forget quality and utility moved together while models unlearned, as a picture. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.report.ink import DASHED, FONT, INK, MUTED, line_style, pictures, style
from align.report.unlearning import ALPHA
from align.stats import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "vsoD^P"  # beside the colour of a line

Reading = Mapping[str, float]


def draw_trajectories(
    path: Path, full: Reading, retain: Reading, runs: Mapping[str, Sequence[Reading]], *, what: str = ""
) -> Path:
    """Write a PNG: forget quality against utility as in ``draw_front``, with a title and a legend.

    ``what`` says what utility is measured on, for the axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with pictures():
        figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        draw_front(axes, full, retain, runs, what=what)
        for number, title in enumerate(runs):
            colour, dashes = style(number)
            marker = _MARKERS[number % len(_MARKERS)]
            axes.plot([], [], color=colour, ls=line_style(dashes), marker=marker, ms=7, lw=1.6, label=title)
        axes.set_title(
            "Forgetting and its cost: open marks on the way, filled ones at the end", loc="left", fontsize=11
        )
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.savefig(path)
    return path


def draw_front(
    axes: Axes,
    full: Reading,
    retain: Reading | None,
    runs: Mapping[str, Sequence[Reading]],
    *,
    what: str = "",
    kept: Mapping[str, float] | None = None,
) -> None:
    """Draw forget quality (a p-value, on a log axis) against utility: a line for each run, a mark for each reading.

    Args:
        full: the reading of the model that all runs start from, with ``forget_quality`` and ``utility``.
        retain: that of the model which never saw the forgotten rows, with ``utility``; None where it is not known.
        runs: readings in order, by title.
        what: what utility is measured on.
        kept: the step of each run that was kept, which gets a ring.
    """
    # ruined models fall far below the full one, which would press everything else together: they are drawn at the floor
    floor = 10.0 ** math.floor(math.log10(max(full["forget_quality"], 1e-30)) - 1)
    axes.axhline(ALPHA, color=MUTED, lw=0.9, ls=line_style(DASHED), zorder=1)
    for number, (title, readings) in enumerate(runs.items()):
        _line(axes, readings, floor, style(number), _MARKERS[number % len(_MARKERS)])
        ringed = [r for r in readings if r.get("step") is not None and r.get("step") == (kept or {}).get(title)]
        for reading in ringed:
            place = [reading["utility"]], [max(reading["forget_quality"], floor)]
            axes.plot(*place, color="none", marker="o", ms=14, ls="", mec=INK, mew=1.3, zorder=6)
    _models(axes, full, retain)
    models = [full] if retain is None else [full, retain]
    _frame(axes, max(r["utility"] for r in (*models, *(r for own in runs.values() for r in own))), floor, what)


def _line(axes: Axes, readings: Sequence[Reading], floor: float, style: Any, marker: str) -> None:
    colour, dashes = style
    x = [reading["utility"] for reading in readings]
    y = [max(reading["forget_quality"], floor) for reading in readings]
    axes.plot(x, y, color=colour, ls=line_style(dashes), lw=1.6, zorder=2)
    axes.plot(x[1:-1], y[1:-1], color="none", marker=marker, ms=5, ls="", mec=colour, mew=1.4, zorder=3)
    axes.plot(x[-1:], y[-1:], color=colour, marker=marker, ms=8, ls="", mec=colour, zorder=5)


def _models(axes: Axes, full: Reading, retain: Reading | None) -> None:
    """The model that shall forget, and the one that never knew; its forget quality is 1, compared with itself."""
    marks = [(full["utility"], full["forget_quality"], "full model", -20, INK)]
    if retain is not None:
        marks.append((retain["utility"], 1.0, "retain model", 12, "none"))
    for x, y, label, above, face in marks:
        axes.plot([x], [y], color=face, marker="*", ms=15, ls="", mec=INK, mew=1.2, zorder=4)
        axes.annotate(label, (x, y), (0, above), textcoords="offset points", ha="center", fontsize=FONT)


def _frame(axes: Axes, most: float, floor: float, what: str) -> None:
    low = math.log10(floor)
    axes.set_yscale("log")
    axes.set_ylim(10 ** (low - 2), 1e2)
    axes.set_xlim(-0.03, max(most, 0.05) * 1.2)
    powers = [p for p in range(-30, 0, 5) if p > low + 1]
    axes.set_yticks([floor, *(10.0**p for p in powers), 1.0], [f"<= 1e{low:.0f}", *(f"1e{p}" for p in powers), "1"])
    axes.minorticks_off()
    axes.text(-0.02, ALPHA * 1.6, f"{ALPHA}", ha="left", va="bottom", fontsize=FONT - 1, color=MUTED)
    axes.set_xlabel("utility" + (f" ({what})" if what else ""))
    axes.set_ylabel("forget quality (p-value)")


def trajectory(records: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Step and reading of every evaluation that a run recorded, in order; what is no finite number is left out."""
    read = [(r["step"], r["evaluation"]) for r in records if isinstance(r.get("evaluation"), Mapping)]
    return [{"step": s, **{k: v for k, v in one.items() if finite(v) is not None}} for s, one in read]
