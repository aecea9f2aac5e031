"""Whether a reward model is right as often as it is sure, as a picture. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.report.ink import COLOURS, DASHED, FONT, MUTED, line_style, svg
from align.stats import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bins = Sequence[Mapping[str, Any]]


def draw_calibration(path: Path, bins: Bins, *, title: str = "") -> Path:
    """Write an SVG with a transparent ground: the curve of ``draw_curve``, under a title."""

    def draw(axes: Axes) -> None:
        draw_curve(axes, bins)
        axes.set_title(title, loc="left", fontsize=11, color=MUTED)

    path.write_text(svg(draw, "calibration", width=5.4, height=5.4), encoding="utf-8")
    return path


def draw_curve(axes: Axes, bins: Bins) -> None:
    """Draw accuracy against confidence, a point and its 95 % interval for each bin.

    ``bins``: ``confidence`` (mean of sigmoid(|margin|)), ``accuracy`` and ``n`` of each bin that has pairs.
    """
    axes.plot([0.5, 1], [0.5, 1], color=MUTED, lw=1, ls=line_style(DASHED))
    spans = [wilson(part["accuracy"] * part["n"], part["n"]) for part in bins]
    x = [part["confidence"] for part in bins]
    y = [part["accuracy"] for part in bins]
    errors = [s.value - s.low for s in spans], [s.high - s.value for s in spans]
    axes.errorbar(x, y, yerr=errors, color=COLOURS["blue"], marker="o", ms=6, lw=1.6, elinewidth=1, capsize=3)
    over = axes.get_xaxis_transform()  # by confidence, and up the axes
    for part in bins:
        place = (part["confidence"], 0.98)
        axes.text(*place, str(part["n"]), transform=over, ha="center", va="top", fontsize=FONT - 1, color=MUTED)
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(min([0.5, *(span.low for span in spans)]) - 0.03, 1.12)
    axes.set_xlabel(
        "confidence: sigmoid of the margin's size\ndashed: as sure as right; at the top: pairs of each point"
    )
    axes.set_ylabel("accuracy")
