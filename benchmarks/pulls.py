"""How hard losses of pairs pull on the two answers as the margin grows: docs/figures/pulls.svg.

    python benchmarks/pulls.py              draws the picture; `make docs` runs it
    python benchmarks/pulls.py --json       prints the numbers behind it

Every curve is the gradient of the objective itself, not its formula. Both answers have 20 tokens, of 1 nat each under
the reference, and half of the margin d_w - d_l lies on either side: the chosen answer has risen by as much as the
rejected one has fallen.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from align.engine.scores import Scores
from align.objectives import OBJECTIVES, Objective

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "pulls.svg"
TOKENS = 20
MARGINS = torch.linspace(-20, 40, 241, dtype=torch.float64)  # d_w - d_l, nats

# name and settings of each panel; defaults where there are none
PANELS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "robust": {},
    "exo_pair": {},
    "hinge": {},
    "flex_dpo": {"beta_minus": 0.05},
    "rpo": {"preset": "handbook", "beta": 0.1, "eta": 0.2},
    "apo_zero": {},
    "nca_pair": {},
    "ipo": {"reduction": "sum"},
    "sppo_hard": {},
    "simpo": {},
}
_CHOSEN, _REJECTED = "#1f6fb4", "#d1601f"


def made(name: str) -> Objective:
    """The objective of a panel."""
    return OBJECTIVES[name](**PANELS[name])


def pulls(objective: Objective, margins: torch.Tensor = MARGINS) -> tuple[torch.Tensor, torch.Tensor]:
    """How hard an objective pulls the chosen answer up and the rejected one down, [n] each, at margins [n]."""
    tokens = {}
    for branch, sign in (("chosen", 1), ("rejected", -1)):
        logp = -1 + sign * margins[:, None] / 2 / TOKENS
        tokens[branch] = [row.clone().requires_grad_() for row in logp.expand(-1, TOKENS)]
    reference = Scores.from_rows(**{b: list(torch.full((len(margins), TOKENS), -1.0)) for b in tokens})
    terms = objective(Scores.from_rows(**tokens), reference if objective.needs_reference else None)
    sum(term.weight * term.losses.sum() for term in terms.losses).backward()
    up, down = (torch.stack([row.grad[0] for row in tokens[branch]]) for branch in ("chosen", "rejected"))
    return -up, down


def relative(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Both pulls of a panel over the margins, in units of the one on the rejected answer at margin 0."""
    objective = made(name)
    _, start = pulls(objective, torch.zeros(1, dtype=torch.float64))
    up, down = pulls(objective)
    return up / start, down / start


def draw(path: Path) -> None:
    """The picture, one panel for each objective."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "pulls"  # the same file from the same numbers
    columns = 4
    rows = len(PANELS) // columns + 1  # one more panel holds the legend
    figure = Figure(figsize=(11, 2.6 * rows + 0.5), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, PANELS, strict=False):
        up, down = relative(name)
        axes.axhline(0, color="#888888", lw=0.8)
        axes.axvline(0, color="#cccccc", lw=0.8)
        axes.plot(MARGINS, up, color=_CHOSEN, lw=2.4)
        axes.plot(MARGINS, down, color=_REJECTED, lw=2, ls=(0, (4, 2)))
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
        settings = "\n".join(f"{key} {value}" for key, value in PANELS[name].items())
        axes.text(0.97, 0.95, settings, transform=axes.transAxes, ha="right", va="top", fontsize=8, color="#555555")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(ylim=(-1.1, 2.6), xlim=(float(MARGINS[0]), float(MARGINS[-1])))
        axes.tick_params(labelbottom=True)
    figure.supxlabel("margin d_w - d_l, nats", fontsize=10)
    figure.supylabel("pull, in units of that on rejected at margin 0", fontsize=10)
    for axes in grid.flat[len(PANELS) :]:
        axes.set_axis_off()
    legend = grid.flat[len(PANELS)]
    for height, side, colour in ((0.7, "chosen answer, up", _CHOSEN), (0.6, "rejected answer, down", _REJECTED)):
        legend.text(0, height, f"on the {side}", color=colour, fontweight="bold", transform=legend.transAxes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the numbers instead")
    parser.add_argument("--out", type=Path, default=PICTURE, help="where the picture goes")
    args = parser.parse_args(argv)
    if args.json:
        found = {name: [side.tolist() for side in relative(name)] for name in PANELS}
        print(json.dumps({"margins": MARGINS.tolist(), "chosen, rejected": found}))
    else:
        draw(args.out)
        print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
