"""docs/methods.md has a section for every objective, and its table of pulls is what autograd gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from align.engine.scores import Scores
from align.objectives import DPO, INPO, IPO, NLL, OBJECTIVES, RPO, FlexDPO, Hinge, Objective, SimPO, SPPOHard

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def test_every_objective_has_a_section_that_names_its_paper() -> None:
    sections = dict(re.findall(r"^## (\w+): (.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
    assert set(sections) == set(OBJECTIVES)
    for name, objective in OBJECTIVES.items():
        for paper in re.findall(r"\d{4}\.\d{5}", objective.paper):
            assert paper in sections[name], f"{name}: {paper} is not in docs/methods.md"
        for part in ("- Formula", "- Source", "- Oracle"):
            assert part in sections[name], f"{name}: no {part}"


@pytest.fixture
def pair() -> dict[str, Tensor]:
    """Five random pairs: log-probs of both answers under policy (l) and reference (r), and token counts (t)."""
    generator = torch.Generator().manual_seed(0)
    values = {k: -20 * torch.rand(5, generator=generator, dtype=torch.float64) for k in ("l_w", "l_l", "r_w", "r_l")}
    lengths = {k: torch.randint(2, 9, (5,), generator=generator) for k in ("t_w", "t_l")}
    return {**{k: v.requires_grad_(k[0] == "l") for k, v in values.items()}, **lengths}


def scores(pair: dict[str, Tensor], side: str) -> Scores:
    """One token for each answer carries its sum; the lengths are the true ones."""
    logp, lengths = torch.cat([pair[f"{side}_w"], pair[f"{side}_l"]]), torch.cat([pair["t_w"], pair["t_l"]])
    held = torch.cat([pair["r_w"], pair["r_l"]])
    sequences = {"chosen": torch.arange(5), "rejected": torch.arange(5, 10)}
    anchors = {"initial": held, "previous": held / 2}
    return Scores({"logp": logp}, torch.arange(10), sequences, lengths, anchors=anchors)


CASES = (
    "dpo",
    "smoothed",
    "flex",
    "hinge",
    "ipo",
    "ipo_token",
    "handbook",
    "openrlhf",
    "inpo",
    "simpo",
    "sppo_hard",
    "nll_sum",
    "nll_token",
)


def expected(name: str, pair: dict[str, Tensor]) -> tuple[Objective, Tensor | float, Tensor | float]:
    l_w, l_l, t_w, t_l = (pair[k].detach().double() for k in ("l_w", "l_l", "t_w", "t_l"))
    d_w, d_l = l_w - pair["r_w"], l_l - pair["r_l"]
    ratio = d_w - d_l

    def s(m: Tensor) -> Tensor:
        return torch.sigmoid(-m)

    inside = 0.1 * (0.1 * ratio < 1).double()
    per_token = 2 * (5 - (d_w / t_w - d_l / t_l))
    simpo = 2 * s(2 * (l_w / t_w - l_l / t_l) - 1)
    return {
        "dpo": (DPO(), 0.1 * s(0.1 * ratio), 0.1 * s(0.1 * ratio)),
        "smoothed": (DPO(label_smoothing=0.2), 0.1 * (s(0.1 * ratio) - 0.2), 0.1 * (s(0.1 * ratio) - 0.2)),
        "flex": (FlexDPO(), 0.1 * s(0.1 * d_w - 0.08 * d_l), 0.08 * s(0.1 * d_w - 0.08 * d_l)),
        "hinge": (Hinge(), inside, inside),
        "ipo": (IPO(reduction="sum"), 2 * (5 - ratio), 2 * (5 - ratio)),
        "ipo_token": (IPO(), per_token / t_w, per_token / t_l),
        "handbook": (RPO(preset="handbook"), 0.01 * (s(0.01 * ratio) + 0.005), 0.01 * s(0.01 * ratio)),
        "openrlhf": (RPO(), 0.5 * s(0.5 * ratio) + 0.2 / t_w, 0.5 * s(0.5 * ratio)),
        # a quarter of the reference and three quarters of half of it
        "inpo": (INPO(0.1, 0.25), *[2 * (5 - (l_w - l_l) + 0.625 * (pair["r_w"] - pair["r_l"]))] * 2),
        "sppo_hard": (SPPOHard(), 2 * (5 - d_w), 2 * (5 + d_l)),
        "simpo": (SimPO(), simpo / t_w, simpo / t_l),
        "nll_sum": (NLL(norm="sum"), 1.0, 0.0),
        "nll_token": (NLL(), 5 / t_w.sum(), 0.0),
    }[name]


@pytest.mark.parametrize("name", CASES)
def test_pulls(name: str, pair: dict[str, Tensor]) -> None:
    objective, pull_w, pull_l = expected(name, pair)
    # B times the mean over pairs
    divisor = {"examples": 1.0, "sequences:chosen": 1.0, "tokens:chosen": pair["t_w"].double().sum() / 5}
    terms = objective(scores(pair, "l"), scores(pair, "r")).losses
    total = sum(term.weight * term.losses.sum() / divisor[term.unit] for term in terms)
    on_w, on_l = torch.autograd.grad(total, [pair["l_w"], pair["l_l"]])
    torch.testing.assert_close(-on_w, torch.zeros(5).double() + pull_w, atol=1e-9, rtol=0)
    torch.testing.assert_close(on_l, torch.zeros(5).double() + pull_l, atol=1e-9, rtol=0)
