"""From a loss back to its formula: the objectives that are structures, with their numbers, and those that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from objectives.test_objectives import per_pair, random_pairs
from torch import Tensor

from align.engine.scores import Scores
from align.objectives import (
    DPO,
    IPO,
    KL,
    NLL,
    RPO,
    FlexDPO,
    GradAscent,
    Hinge,
    Logic,
    Objective,
    SimPO,
    SPPOHard,
    Term,
    Terms,
    WeightedSum,
)
from align.objectives.decompile import can_be_called, decompile
from align.objectives.formulas.structures import PRESETS, compiled
from align.objectives.pairwise import Pairwise, Referenced


@dataclass(frozen=True)
class SquaredHinge(Referenced):
    beta: float = 0.1

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        return (1 - self.beta * (chosen - rejected)).relu() ** 2


WHOLE = {"probability": "sequence"}
FOUND: dict[str, tuple[Objective, list[tuple[Logic, float] | None]]] = {
    "dpo": (DPO(beta=0.3), [(Logic("DPO", beta=0.3, **WHOLE), 1.0)]),
    # max(0, 1 - beta x) = beta max(0, 1/beta - x)
    "hinge": (Hinge(beta=0.25), [(Logic("DPO", link="hinge", beta=4.0, **WHOLE), 0.25)]),
    "ipo": (IPO(tau=0.2), [(Logic("DPO", link="squared", beta=0.2), 1.0)]),
    "ipo of sums": (IPO(tau=0.05, reduction="sum"), [(Logic("DPO", link="squared", beta=0.05, **WHOLE), 1.0)]),
    "simpo": (SimPO(beta=2.5, gamma=0.6), [(Logic("SimPO", beta=2.5, gamma=0.6), 1.0)]),
    "nll": (NLL(), [(Logic("CE"), 1.0)]),
    "nll of sums": (NLL(norm="sum"), [(Logic("CE", **WHOLE), 1.0)]),
    "rpo": (RPO(), [(Logic("DPO", beta=0.5, **WHOLE), 1.0), (Logic("CE"), 0.2)]),
    "sum": (WeightedSum(((SimPO(beta=1.5, gamma=0.0), 2.0),)), [(Logic("CPO", beta=1.5), 2.0)]),
    # its two sides weighed alike, flex_dpo is DPO; else it is no structure
    "flex_dpo of equal betas": (FlexDPO(0.1, 0.1), [(Logic("DPO", beta=0.1, **WHOLE), 1.0)]),
    "flex_dpo": (FlexDPO(), [None]),
    "smoothed dpo": (DPO(label_smoothing=0.1), [None]),
    "sppo_hard": (SPPOHard(), [None]),
    # as ipo up to a margin of 10 nats, and 0 from there on
    "squared hinge": (SquaredHinge(), [None]),
}


@pytest.mark.parametrize("name", FOUND)
def test_objectives(name: str) -> None:
    objective, expected = FOUND[name]
    assert can_be_called(objective)
    found = decompile(objective)
    assert found == expected
    if None in found or isinstance(objective, RPO):
        return
    ((logic, weight),) = found
    policy, reference = random_pairs(11)  # other pairs than those that were tried
    if objective.branches == ("chosen",) and objective.norm == "token_mean":
        objective = replace(objective, norm="seq_mean")  # pairs of unequal lengths have no token mean of their own
    mine, theirs = per_pair(logic, policy, reference), per_pair(objective, policy, reference)
    torch.testing.assert_close(weight * mine, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("link", ["logistic", "squared", "hinge"])
@pytest.mark.parametrize("reference", [False, True])
def test_every_preset_is_found_again(link: str, reference: bool) -> None:
    for name, preset in PRESETS.items():
        if preset.version_of:
            continue
        logic = Logic(name, link=link, beta={"logistic": 0.7, "squared": 0.05, "hinge": 9.0}[link], reference=reference)
        same = replace(logic, preset="DPO", reference=False) if (name, reference) == ("CPO", True) else logic
        assert decompile(logic) == [(same, 1.0)]


def test_a_structure_without_a_name() -> None:
    formula = Logic(formula="W xor L", beta=0.5)
    ((found, weight),) = decompile(formula)
    assert weight == 1.0
    assert (found.preset, found.beta) == (None, 0.5)
    top = {(True, False), (False, True)}
    assert compiled(found.formula, found.condition, found.additive).top == top


@dataclass(frozen=True, kw_only=True)
class Altered(Pairwise):
    """The loss of another objective, with a function of it in its place."""

    inner: Objective
    change: Callable[[Tensor], Tensor]

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        return Terms((Term(self.change(self.inner(policy, None).losses[0].losses)),))


def test_factors_within_a_loss() -> None:
    squared = Altered(inner=Logic("ORPO", link="squared", beta=0.1), change=lambda losses: 4 * losses)
    assert decompile(squared) == [(Logic("ORPO", link="squared", beta=0.1), 4.0)]
    hinge = Altered(inner=Logic("cUNL", link="hinge", beta=8.0), change=lambda losses: 0.5 * losses)
    assert decompile(hinge) == [(Logic("cUNL", link="hinge", beta=8.0), 0.5)]
    logistic = Altered(inner=Logic("CPO"), change=lambda losses: 0.5 * losses)
    assert decompile(logistic) == [None]  # the factor would have to be known to undo the link


def test_a_loss_that_is_a_structure_on_some_pairs_only() -> None:
    """On the line of a hinge down to 3, and 0 from there, where the hinge goes on."""
    jump = Altered(inner=Logic("CPO", link="hinge", beta=3.0), change=lambda x: torch.where(x > 3, x, 0))
    losses = jump(*(random_pairs(0))).losses[0].losses
    assert 0 < (losses == 0).sum() < len(losses)
    assert decompile(jump) == [None]


def test_what_is_not_called() -> None:
    for objective in (GradAscent(), KL(branch="chosen"), NLL(branch="retain"), DPO(use_weighting=True)):
        assert not can_be_called(objective)
