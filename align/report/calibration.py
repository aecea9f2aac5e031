"""Whether a reward model is right as often as it is sure, as a picture. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.stats import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY, _BLUE = "#808080", "#0072B2"  # both stand out on white and on black


def draw_calibration(path: Path, bins: Sequence[Mapping[str, Any]], *, title: str = "") -> Path:
    """Write an SVG with a transparent ground: accuracy against confidence, a point and its interval for each bin.

    Args:
        bins: ``confidence`` (mean of sigmoid(|margin|)), ``accuracy`` and ``n`` of each bin that has pairs.
        title: what stands above the picture.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "align", "svg.fonttype": "none"}):  # text stays text, ids the same
        figure = Figure(figsize=(5.4, 5.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.plot([0.5, 1], [0.5, 1], color=_GREY, lw=1, ls=(0, (4, 3)), label="as sure as right")
        _points(axes, bins)
        _frame(axes, bins, title)
        figure.savefig(path, transparent=True, metadata={"Date": None})
    return path


def _points(axes: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    spans = [wilson(part["accuracy"] * part["n"], part["n"]) for part in bins]
    x = [part["confidence"] for part in bins]
    y = [part["accuracy"] for part in bins]
    below, above = [s.value - s.low for s in spans], [s.high - s.value for s in spans]
    label = "held-out pairs, with 95% intervals"
    axes.errorbar(
        x, y, yerr=[below, above], color=_BLUE, marker="o", ms=6, lw=1.6, elinewidth=1, capsize=3, label=label
    )
    for part in bins:
        place = (part["confidence"], part["accuracy"])
        axes.annotate(f"n {part['n']}", place, (7, -12), textcoords="offset points", fontsize=9, color=_GREY)


def _frame(axes: Axes, bins: Sequence[Mapping[str, Any]], title: str) -> None:
    axes.set_xlim(0.48, 1.02)
    lows = [wilson(part["accuracy"] * part["n"], part["n"]).low for part in bins]
    axes.set_ylim(min([0.5, *lows]) - 0.02, 1.02)
    axes.set_xlabel("confidence: sigmoid of the margin's size", color=_GREY)
    axes.set_ylabel("accuracy", color=_GREY)
    axes.set_title(title, loc="left", fontsize=11, color=_GREY)
    axes.tick_params(colors=_GREY)
    for spine in axes.spines.values():
        spine.set_color(_GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=_GREY)
