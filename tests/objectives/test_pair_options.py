"""What the options of pairwise losses mean: divergences, weights of tokens and of pairs, and those of dpo."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from objectives.test_objectives import per_pair, random_pairs, scored, worked
from objectives.test_pairwise import pairs, rows_of

from align.engine.reads import CollisionProbability
from align.objectives import (
    DPO,
    OBJECTIVES,
)
from align.objectives.pairwise import Referenced


@pytest.mark.parametrize(
    ("divergence", "coefficient", "slope"),
    [
        ("reverse_kl", 0.5, 1.0),
        ("forward_kl", 0.5, 1.0),
        ("alpha_divergence", 0.5, 1.0),
        ("alpha_divergence", 1.0, 1.0),
        ("alpha_divergence", 2.0, 1.0),
        ("js_divergence", 0.5, 0.5),  # as TRL scales its f
    ],
)
def test_slopes_of_divergences_at_the_reference(divergence: Any, coefficient: float, slope: float) -> None:
    d = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    objective = DPO(f_divergence_type=divergence, f_alpha_divergence_coef=coefficient)
    value, _ = objective.measured(*pairs(d, [0.0]))
    value.sum().backward()
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    assert d.grad.item() == pytest.approx(slope, rel=1e-12, abs=0)


def test_the_alpha_divergence_contains_both_kl_divergences() -> None:
    policy, reference = random_pairs(15)
    alpha = {
        a: per_pair(DPO(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=a), policy, reference)
        for a in (0.0, 1.0)
    }
    assert torch.equal(alpha[1.0], per_pair(DPO(), policy, reference))
    assert torch.equal(alpha[0.0], per_pair(DPO(f_divergence_type="forward_kl"), policy, reference))


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if issubclass(kind, Referenced)])
def test_the_weight_of_the_longer_answers_tail(name: str) -> None:
    kind: Any = OBJECTIVES[name]
    policy, reference = random_pairs(16)
    plain = per_pair(kind(), policy, reference)
    assert torch.equal(per_pair(kind(ld_alpha=1.0), policy, reference), plain)
    shorter = torch.minimum(policy.count("chosen"), policy.count("rejected")).long()
    heads = [
        scored({name: [row[:n] for row, n in zip(rows_of(s, name), shorter, strict=True)] for name in s.sequences})
        for s in (policy, reference)
    ]
    assert kind().needs_reference
    assert kind(ld_alpha=0.0).by_token
    assert not kind(ld_alpha=0.0).bare.by_token
    chosen, rejected = kind(ld_alpha=0.0).measured(policy, reference)
    assert all(torch.allclose(a, b) for a, b in zip((chosen, rejected), kind().measured(*heads), strict=True))


def test_the_weight_of_a_pair_is_one_where_the_policy_is_sure() -> None:
    policy, reference = random_pairs(17)
    sure = torch.full((len(policy.owner), 5), -200.0)
    sure[:, 2] = 0.0
    target = torch.full_like(policy.owner, 2)
    tokens = {"logp": sure.log_softmax(-1)[:, 2], "collision": CollisionProbability().chunk(sure, target, None)}
    certain = replace(policy, tokens=tokens)
    assert torch.equal(per_pair(DPO(use_weighting=True), certain, reference), per_pair(DPO(), certain, reference))
    # over four equal words log p = log sum p^2 = -log 4: as likely as any draw of its own, so 1 again; half as likely
    # words on one side of a pair weigh a half
    logits = torch.zeros(len(policy.owner), 4)
    even = {"logp": logits.log_softmax(-1)[:, 0], "collision": CollisionProbability().chunk(logits, target, None)}
    level = replace(policy, tokens=even)
    plain = per_pair(DPO(), level, reference)
    assert torch.allclose(per_pair(DPO(use_weighting=True), level, reference), plain)
    chosen = torch.isin(policy.owner, policy.sequences["chosen"])
    rarer = {**even, "logp": even["logp"] - math.log(2) * chosen}
    halved = replace(policy, tokens=rarer)
    found = per_pair(DPO(use_weighting=True), halved, reference)
    assert torch.allclose(found, 0.5 * per_pair(DPO(), halved, reference))


def test_weights_of_pairs_take_no_gradient() -> None:
    leaves, policy, reference = worked()
    per_pair(DPO(0.5, use_weighting=True), policy, reference).sum().backward()
    other, again, _ = worked()
    weights = per_pair(DPO(0.5, use_weighting=True), again, reference) / per_pair(DPO(0.5), again, reference)
    (weights.detach() * per_pair(DPO(0.5), again, reference)).sum().backward()
    for name in ("chosen", "rejected"):
        for mine, expected in zip(leaves[name], other[name], strict=True):
            assert torch.allclose(mine.grad, expected.grad, rtol=1e-12)
    assert not CollisionProbability.differentiable  # so that the head computes no gradient of it


def test_dpops_penalty_acts_below_the_reference_alone() -> None:
    policy, reference = pairs([0.5, -0.5], [0.0, 0.0])
    above, below = per_pair(DPO(1.0, dpop_lambda=3.0), policy, reference).tolist()
    assert above == pytest.approx(math.log1p(math.exp(-0.5)), rel=1e-12, abs=0)
    assert below == pytest.approx(math.log1p(math.exp(0.5 + 3 * 0.5)), rel=1e-12, abs=0)


def test_the_price_of_length_lets_short_chosen_answers_pull_more() -> None:
    rows = {
        "chosen": [torch.full((5,), -1.0), torch.full((2,), -1.0)],
        "rejected": [torch.full((2,), -1.0), torch.full((5,), -1.0)],
    }
    policy = scored(rows)
    longer, shorter = per_pair(DPO(1.0, length_alpha=0.1), policy, policy).tolist()
    assert longer == pytest.approx(math.log1p(math.exp(-0.3)), rel=1e-6, abs=0)
    assert shorter == pytest.approx(math.log1p(math.exp(0.3)), rel=1e-6, abs=0)


def test_a_pairs_own_beta() -> None:
    objective = DPO(0.1, beta_alpha=1.0)
    assert objective.coupled == (
        "beta_alpha compares margins with their mean over the micro-batch, so it does nothing to a single pair"
    )
    assert DPO().coupled is None
    one = pairs([3.0], [1.0])
    assert torch.equal(per_pair(objective, *one), per_pair(DPO(0.1), *one))  # it is its own mean
    # margins 5 and -5 nats times 0.1: factors 1.5 and 0.5; at alpha 10 the floor of a tenth
    both = pairs([5.0, -5.0], [0.0, 0.0])
    gentle, steep = per_pair(objective, *both).tolist(), per_pair(DPO(0.1, beta_alpha=10.0), *both).tolist()
    assert gentle == pytest.approx([math.log1p(math.exp(-0.75)), math.log1p(math.exp(0.25))], rel=1e-12, abs=0)
    assert steep == pytest.approx([math.log1p(math.exp(-3.0)), math.log1p(math.exp(0.05))], rel=1e-12, abs=0)
