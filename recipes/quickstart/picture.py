"""The quickstart's picture: where the probability is, and how the two answers got there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.recipes.quickstart.measure import Masses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which stay apart for colour-blind readers; no method shares one with a part
_PARTS = {
    "chosen": ("chosen answer", "#009E73"),
    "others": ("the world's other answers", "#C9D6DF"),
    "rejected": ("rejected answer", "#D55E00"),
    "elsewhere": ("any other text", "#4D4D4D"),
}
_LINES = {"DPO": "#0072B2", "Flex-DPO": "#E69F00", "RPO": "#CC79A7"}
_DASHED = (0, (4, 2))


def draw(path: Path, masses: Mapping[str, Masses], changes: Mapping[str, Sequence[tuple[float, float, float]]]) -> Path:
    """Write the picture as PNG. ``changes`` hold (step, chosen, rejected) per method, in nats since the start."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _bars(left, masses)
    _curves(right, changes)
    figure.savefig(path)
    return path


def _bars(axes: Axes, masses: Mapping[str, Masses]) -> None:
    titles = list(masses)
    begin = [0.0] * len(titles)
    for part, (label, colour) in _PARTS.items():
        values = [getattr(masses[title], part) for title in titles]
        axes.barh(titles, values, left=begin, color=colour, label=label, edgecolor="white", height=0.62)
        for row, (value, at) in enumerate(zip(values, begin, strict=True)):
            if value >= 0.045:
                dark = part in ("chosen", "elsewhere", "rejected")
                axes.text(
                    at + value / 2,
                    row,
                    f"{value:.0%}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if dark else "black",
                    fontweight="bold" if part == "chosen" else None,
                )
        begin = [a + b for a, b in zip(begin, values, strict=True)]
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.set_xlabel("probability of the whole answer, mean over the training prompts")
    axes.set_title("Where the probability is", loc="left", fontsize=11, fontweight="bold")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=4,
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.2,
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _curves(axes: Axes, changes: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
    for title, points in changes.items():
        steps, chosen, rejected = zip(*points, strict=True)
        axes.plot(steps, chosen, color=_LINES[title], label=title, lw=1.8)
        axes.plot(steps, rejected, color=_LINES[title], lw=1.8, ls=_DASHED)
    axes.plot([], [], color="black", lw=1.4, label="chosen answer")
    axes.plot([], [], color="black", lw=1.4, ls=_DASHED, label="rejected answer")
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("change of log-prob, nats")
    axes.set_title("How held-out pairs moved", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
