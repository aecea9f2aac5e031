"""What the losses of pairs are for: their pulls, identities, limits and fixed points."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from objectives.test_objectives import per_pair, random_pairs, scored, summed
from torch import Tensor

from align.engine.scores import Scores
from align.objectives import (
    AOT,
    DPO,
    AOTUnpaired,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    NCAPair,
    Objective,
    Robust,
    SigmoidNorm,
)


def pairs(d_w: Any, d_l: Any) -> tuple[Scores, Scores]:
    """Policy and reference of pairs with these log-ratios, one token an answer."""
    size = len(d_w)
    reference = scored({"chosen": summed(*[-2.0] * size), "rejected": summed(*[-3.0] * size)})
    chosen, rejected = (
        [(torch.as_tensor(d, dtype=torch.float64) + by)[None] for d in side] for side, by in ((d_w, -2.0), (d_l, -3.0))
    )
    return scored({"chosen": chosen, "rejected": rejected}), reference


def rows_of(scores: Scores, branch: str) -> list[Tensor]:
    return [scores.of_sequence(i) for i in scores.sequences[branch]]


# ---- losses of the difference of rewards


@pytest.mark.parametrize("smoothing", [1e-3, 0.1, 0.4])
def test_exo_is_the_divergence_of_two_point_distributions(smoothing: float) -> None:
    policy, reference = pairs([0.0, 1.0, -3.0], [0.5, -2.0, 0.0])
    found = per_pair(EXOPair(beta=0.7, label_smoothing=smoothing), policy, reference)
    for value, margin in zip(found.tolist(), (-0.35, 2.1, -2.1), strict=True):
        q = 1 / (1 + math.exp(-margin))
        divergence = q * math.log(q / (1 - smoothing)) + (1 - q) * math.log((1 - q) / smoothing)
        assert value == pytest.approx(divergence, rel=1e-12, abs=0)


def test_exo_is_zero_at_its_finite_target() -> None:
    target = math.log(0.9 / 0.1)
    policy, reference = pairs([target, target + 1, target - 1], [0.0, 0.0, 0.0])
    losses = per_pair(EXOPair(beta=1.0, label_smoothing=0.1), policy, reference)
    assert losses[0].item() == pytest.approx(0.0, abs=1e-15)
    assert losses[1] > 0.01
    assert losses[2] > 0.01


def test_robust_without_flips_is_dpo() -> None:
    policy, reference = random_pairs(11)
    assert torch.equal(
        per_pair(Robust(0.3, label_smoothing=0.0), policy, reference), per_pair(DPO(0.3), policy, reference)
    )


@pytest.mark.parametrize("rate", [0.1, 0.35])
def test_robust_is_unbiased_under_flipped_labels(rate: float) -> None:
    """Averaged over labels that are flipped with its rate it is DPO's loss on the true ones; DPO itself is not."""
    up, down = [1.5, -0.3], [-0.5, 0.4]
    clean = per_pair(DPO(0.8), *pairs(up, down))
    for objective, unbiased in ((Robust(0.8, label_smoothing=rate), True), (DPO(0.8), False)):
        right, flipped = (per_pair(objective, *pairs(*sides)) for sides in ((up, down), (down, up)))
        mean = (1 - rate) * right + rate * flipped
        assert torch.allclose(mean, clean, rtol=1e-12, atol=0) is unbiased


def test_discopop_is_logistic_on_one_side_and_exponential_on_the_other() -> None:
    policy, reference = pairs([2.0, -2.0], [0.0, 0.0])
    right, wrong = per_pair(DiscoPOP(beta=1.0), policy, reference).tolist()
    assert right == pytest.approx(math.exp(-2), rel=1e-12, abs=0)
    assert wrong == pytest.approx(math.log1p(math.exp(2)), rel=1e-12, abs=0)


def test_discopop_pushes_pairs_the_wrong_way_between_two_margins() -> None:
    margins = [-0.13, -0.11, 0.0, 0.06, 0.08]
    d_w = torch.tensor(margins, dtype=torch.float64, requires_grad=True)
    per_pair(DiscoPOP(beta=1.0), *pairs(d_w, [0.0] * 5)).sum().backward()
    assert [slope > 0 for slope in d_w.grad.tolist()] == [False, True, True, True, False]


def test_sigmoid_norm_is_dpo_for_answers_of_one_token() -> None:
    policy, reference = pairs([1.0, -2.0], [0.5, 0.25])
    norm = SigmoidNorm(beta=0.4)
    assert torch.equal(per_pair(norm, policy, reference), per_pair(DPO(0.4), policy, reference))
    longer, held = random_pairs(12)
    copies = [
        scored({name: [torch.cat([row, row]) for row in rows_of(s, name)] for name in s.sequences})
        for s in (longer, held)
    ]
    assert torch.allclose(per_pair(norm, *copies), per_pair(norm, longer, held), rtol=1e-5)
    assert not torch.allclose(per_pair(DPO(0.4), *copies), per_pair(DPO(0.4), longer, held), rtol=1e-2)


# ---- losses of either answer by itself


def test_values_where_policy_and_reference_agree() -> None:
    policy, _ = random_pairs(13)
    for objective, value in (
        (NCAPair(0.7), 2 * math.log(2)),
        (BCOPair(0.7), 2 * math.log(2)),
        (APOZero(0.7), 1.0),
        (APODown(0.7), 1.0),
        (AOT(0.7), math.log(2)),
        (AOTUnpaired(0.7), math.log(2)),
        (SigmoidNorm(0.7), math.log(2)),
        (Robust(0.7), math.log(2)),
        (DiscoPOP(0.7), 0.5 * math.log(2) + 0.5),
        (EXOPair(0.7, label_smoothing=0.1), -math.log(2) - 0.5 * math.log(0.09)),
    ):
        losses = per_pair(objective, policy, policy)
        assert torch.allclose(losses, torch.full_like(losses, value), rtol=1e-6), objective


def descended(objective: Objective, steps: int = 400) -> tuple[float, float]:
    """Where gradient steps on the two log-ratios of a pair lead, from just beside the reference."""
    d = torch.tensor([0.0, -0.01], dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(per_pair(objective, *pairs(d[:1], d[1:])).sum(), d)
        d = (d - slope).detach().requires_grad_()
    return d[0].item(), d[1].item()


def test_where_the_losses_lead() -> None:
    chosen, rejected = descended(APOZero(1.0))
    assert chosen > 3
    assert rejected < -3
    chosen, rejected = descended(APODown(1.0))
    assert rejected < chosen - 2 < -2.5  # both below the reference, the rejected answer further
    chosen, rejected = descended(NCAPair(1.0))
    assert chosen == pytest.approx(math.log(2), rel=1e-6, abs=0)
    assert rejected < -3


def test_bco_is_never_below_dpo() -> None:
    policy, reference = random_pairs(14, 64)
    assert (per_pair(BCOPair(0.5), policy, reference) >= per_pair(DPO(0.5), policy, reference)).all()


# ---- losses that sort


def test_aot_of_single_pairs_is_conservative_dpo() -> None:
    for objective in (AOT(0.5, label_smoothing=0.1), AOTUnpaired(0.5, label_smoothing=0.1)):
        policy, reference = pairs([1.25], [-0.5])
        dpo = DPO(0.5, label_smoothing=0.1)
        assert torch.allclose(per_pair(objective, policy, reference), per_pair(dpo, policy, reference), rtol=1e-12)


def test_aot_does_not_see_whose_value_is_whose() -> None:
    d_w, d_l = [1.0, -0.5, 2.0], [0.25, 1.5, -1.0]
    unpaired = AOTUnpaired(0.5)
    losses = per_pair(unpaired, *pairs(d_w, d_l))
    assert losses.tolist() == pytest.approx(
        [math.log1p(math.exp(-0.5 * m)) for m in (0.5, 0.75, 0.5)], rel=1e-12, abs=0
    )  # sorted -0.5, 1, 2 less -1, 0.25, 1.5
    assert torch.equal(losses, per_pair(unpaired, *pairs(d_w, d_l[::-1])))
    policy, reference = pairs(d_w, d_l)
    turned = {name: ids.flip(0) for name, ids in policy.sequences.items()}
    moved = replace(policy, sequences=turned)
    assert torch.equal(per_pair(AOT(0.5), moved, reference), per_pair(AOT(0.5), policy, reference))
    assert not torch.allclose(per_pair(DPO(0.5), moved, reference).sort().values, losses)


@pytest.mark.parametrize("kind", [AOT, AOTUnpaired])
def test_sorted_losses_refuse_weights(kind: Any) -> None:
    sentence = "this loss sorts over the pairs, so a weight would have no pair to belong to. Remove it."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        kind(use_weighting=True)
