"""How forget quality and utility moved together while models unlearned, as a picture. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.report.unlearning import ALPHA

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which stay apart for colour-blind readers, and a marker each
_STYLES = (("#D55E00", "v"), ("#E69F00", "s"), ("#0072B2", "o"), ("#CC79A7", "D"), ("#009E73", "^"), ("#56B4E9", "P"))

Reading = Mapping[str, float]


def draw_trajectories(
    path: Path, full: Reading, retain: Reading, runs: Mapping[str, Sequence[Reading]], *, what: str = ""
) -> Path:
    """Write a PNG: forget quality (a p-value, on a log axis) against utility, one line per run.

    Args:
        full: the reading of the model that all runs start from, with ``forget_quality`` and ``utility``.
        retain: that of the model which never saw the forgotten rows, with ``utility``.
        runs: readings in order, by title.
        what: what utility is measured on, for the axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # ruined models fall far below the full one, which would press everything else together: they are drawn at the floor
    floor = 10.0 ** math.floor(math.log10(max(full["forget_quality"], 1e-30)) - 1)
    axes.axhline(ALPHA, color="#4D4D4D", lw=0.9, ls=(0, (4, 3)), zorder=1)
    for number, (title, readings) in enumerate(runs.items()):
        _line(axes, title, readings, floor, *_STYLES[number % len(_STYLES)])
    _models(axes, full, retain)
    most = max(r["utility"] for r in (full, retain, *(r for readings in runs.values() for r in readings)))
    _frame(axes, most, floor, what)
    figure.savefig(path)
    return path


def _line(axes: Axes, title: str, readings: Sequence[Reading], floor: float, colour: str, marker: str) -> None:
    x = [reading["utility"] for reading in readings]
    y = [max(reading["forget_quality"], floor) for reading in readings]
    axes.plot(x, y, color=colour, lw=1.6, alpha=0.8, zorder=2)
    axes.plot(x[1:-1], y[1:-1], color="white", marker=marker, ms=5, ls="", mec=colour, mew=1.4, zorder=3)
    axes.plot(x[-1:], y[-1:], color=colour, marker=marker, ms=8, ls="", mec="white", zorder=5)
    axes.plot([], [], color=colour, marker=marker, ms=7, lw=1.6, label=title)


def _models(axes: Axes, full: Reading, retain: Reading) -> None:
    """The model that shall forget, and the one that never knew; its forget quality is 1, compared with itself."""
    for x, y, label, above, face in (
        (full["utility"], full["forget_quality"], "full model", -20, "black"),
        (retain["utility"], 1.0, "retain model", 14, "white"),
    ):
        axes.plot([x], [y], color=face, marker="*", ms=18, ls="", mec="black", mew=1.2, zorder=4)
        axes.annotate(
            label, (x, y), (0, above), textcoords="offset points", ha="center", fontsize=10, fontweight="bold"
        )


def _frame(axes: Axes, most: float, floor: float, what: str) -> None:
    low = math.log10(floor)
    axes.set_yscale("log")
    axes.set_ylim(10 ** (low - 1.2), 3e1)
    axes.set_xlim(-0.03, max(most, 0.05) * 1.12)
    powers = [p for p in range(-30, 0, 5) if p > low + 1]
    labels = [f"$\\leq 10^{{{low:.0f}}}$", *(f"$10^{{{p}}}$" for p in powers), "1"]
    axes.set_yticks([floor, *(10.0**p for p in powers), 1.0], labels)
    axes.minorticks_off()
    axes.text(-0.02, ALPHA * 1.6, f"{ALPHA}", ha="left", va="bottom", fontsize=9, color="#4D4D4D")
    axes.set_xlabel("model utility" + (f" ({what})" if what else ""))
    axes.set_ylabel("forget quality (p-value against the retain model)")
    axes.set_title("Forgetting and its cost: open marks on the way, filled ones at the end", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=10, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.spines[["top", "right"]].set_visible(False)


def trajectory(records: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Step and reading of every evaluation that a run recorded, in order."""
    return [{"step": r["step"], **r["evaluation"]} for r in records if isinstance(r.get("evaluation"), Mapping)]
