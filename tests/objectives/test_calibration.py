"""Gradients scaled per pair: the value stays to the bit, both sides weigh alike, and chosen answers stop falling."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from objectives.test_objectives import rows, scored
from objectives.worked import ANCHORS, POLICY, REFERENCE
from torch import Tensor
from zoo import tiny_model, token_ids

from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.engine.scores import Scores
from align.engine.scoring import ScoringEngine, attach
from align.objectives import (
    CPO,
    DPO,
    INPO,
    IPO,
    NLL,
    RPO,
    FlexDPO,
    Hinge,
    Objective,
    SimPO,
    SPPOHard,
    Terms,
    WeightedSum,
)

# |g_w|^2, |g_l|^2 and <g_w, g_l> of the two pairs of ``cases``: r* = 2 and 1/3, cosines 0.5 and -0.2
PRODUCTS = ((1.0, 4.0, 1.0), (9.0, 1.0, -0.6))
LOSSES = (
    DPO(beta=0.5),
    DPO(beta=0.5, label_smoothing=0.1, f_divergence_type="js_divergence"),
    FlexDPO(beta_plus=0.5, beta_minus=0.25),
    Hinge(beta=0.5),
    INPO(eta=0.25, tau_ratio=0.25),
    IPO(tau=0.5),
    RPO(preset="openrlhf"),
    SimPO(beta=2.0, gamma=0.5),
    SPPOHard(beta=0.5),
)


def measured(running: dict[str, float] | None = None) -> tuple[dict[str, list[Tensor]], Scores, Scores]:
    """Leaves, the policy's scores with products of gradients, and the reference's."""
    leaves = {name: [row.requires_grad_() for row in branch] for name, branch in rows(POLICY).items()}
    policy = scored(leaves, ANCHORS)
    tokens = {**policy.tokens, "head_gradients": torch.tensor(PRODUCTS, dtype=torch.float64)}
    means = {key: torch.tensor(value, dtype=torch.float64) for key, value in (running or {}).items()}
    return leaves, replace(policy, tokens=tokens, running=means), scored(rows(REFERENCE))


def pulls(objective: Objective, running: dict[str, float] | None = None) -> tuple[Tensor, Tensor, Terms]:
    """pull_w and pull_l of both pairs (means over an answer's tokens are the pull of its sum), and the terms."""
    leaves, policy, reference = measured(running)
    terms = objective(policy, reference if objective.needs_reference else None)
    sum(t.weight * t.losses.sum() for t in terms.losses).backward()
    found = [torch.stack([row.grad.mean() for row in leaves[name]]) for name in ("chosen", "rejected")]
    return -found[0], found[1], terms


def mean(terms: Terms, key: str) -> float:
    total, count = terms.metrics[f"calibration/{key}"]
    return (total / count).item()


@pytest.mark.parametrize("objective", LOSSES)
@pytest.mark.parametrize("how", [True, "per_pair"])
def test_the_value_of_the_loss_stays_to_the_bit(objective: Any, how: Any) -> None:
    _, _, plain = pulls(objective)
    _, _, scaled = pulls(replace(objective, calibrate=how), {"log_r": 0.3, "log_wanted": -1.1})
    assert all(torch.equal(a.losses, b.losses) for a, b in zip(plain.losses, scaled.losses, strict=True))
    assert all(torch.equal(plain.metrics[key][0], scaled.metrics[key][0]) for key in plain.metrics)
    assert any(key.startswith("calibration/") for key in scaled.metrics)


@pytest.mark.parametrize("objective", LOSSES)
def test_per_pair_both_sides_have_gradients_of_one_length(objective: Any) -> None:
    w, down, _ = pulls(objective)
    scaled_w, scaled_l, _ = pulls(replace(objective, calibrate="per_pair"))
    norms = torch.tensor(PRODUCTS, dtype=torch.float64)[:, :2].sqrt()
    torch.testing.assert_close(scaled_w * norms[:, 0], scaled_l * norms[:, 1], rtol=1e-12, atol=0)
    # the product of their lengths is what it was, so the size of a step is
    torch.testing.assert_close(scaled_w * scaled_l, w * down, rtol=1e-12, atol=0)


def test_on_means_of_past_steps_all_pairs_have_one_factor() -> None:
    w, down, plain = pulls(DPO(beta=0.5))
    first_w, first_l, _ = pulls(DPO(beta=0.5, calibrate=True))
    assert torch.equal(first_w, w)  # nothing is known in the first step
    assert torch.equal(first_l, down)
    scaled_w, scaled_l, terms = pulls(DPO(beta=0.5, calibrate=True), {"log_r": 0.2, "log_wanted": 1.0})
    factor = math.exp(0.4)
    torch.testing.assert_close(scaled_w, w * factor, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled_l, down / factor, rtol=1e-12, atol=0)
    assert mean(terms, "factor") == pytest.approx(factor, rel=1e-12, abs=0)
    # what the means are made of: r is 1 for DPO, r* 2 and 1/3
    assert {key: (a.item(), n.item()) for key, (a, n) in terms.running.items()} == {
        "log_r": (0.0, 2.0),
        "log_wanted": (pytest.approx(math.log(2) - math.log(3), rel=1e-12), 2.0),
    }
    assert not plain.running


def test_the_factor_is_1_where_both_sides_weigh_alike() -> None:
    for objective in (DPO(beta=0.5), FlexDPO(beta_plus=0.5, beta_minus=0.25)):
        w, down, _ = pulls(objective)
        again = pulls(replace(objective, calibrate=True), {"log_r": 0.7, "log_wanted": 0.7})
        assert torch.equal(again[0], w)
        assert torch.equal(again[1], down)


def test_the_ratio_of_pulls_is_the_losses_own() -> None:
    terms = pulls(FlexDPO(beta_plus=0.5, beta_minus=0.25, calibrate=True))[2]
    assert mean(terms, "log_r") == pytest.approx(math.log(2), rel=1e-12, abs=0)
    w, down, _ = pulls(RPO())
    terms = pulls(RPO(calibrate=True))[2]
    assert mean(terms, "log_r") == pytest.approx((w / down).log().mean().item(), rel=1e-9, abs=0)
    # by the token an answer of 3 tokens is pulled a third as hard; both of the second pair are pulled the wrong way
    terms = pulls(SimPO(beta=2.0, gamma=0.5, calibrate=True))[2]
    assert mean(terms, "log_r") == pytest.approx((math.log(2 / 3) + math.log(4 / 1)) / 2, rel=1e-12, abs=0)


def test_a_term_by_token_counts_as_much_as_it_does_in_the_step() -> None:
    # beta s of the margins 0.125 and 0.25, and the likelihood of 4 tokens over 2 pairs: 1/2 on the chosen answers
    terms = pulls(CPO(beta=0.5, cpo_alpha=1.0, calibrate=True))[2]
    own = [0.5 / (1 + math.exp(m)) for m in (0.125, 0.25)]
    expected = sum(math.log((p + 0.5) / p) for p in own) / 2
    assert mean(terms, "log_r") == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_pair_without_a_ratio_stays_as_it_is_and_is_not_counted() -> None:
    # at beta 1 the first pair's margin is beyond 1, so the hinge has let it go
    plain_w, plain_down, _ = pulls(Hinge(beta=1.0))
    w, down, terms = pulls(Hinge(beta=1.0, calibrate="per_pair"))
    assert (w[0].item(), down[0].item()) == (plain_w[0].item(), plain_down[0].item()) == (0.0, 0.0)
    assert w[1].item() == pytest.approx(math.sqrt(1 / 3), rel=1e-12, abs=0)
    assert terms.metrics["calibration/factor"][1].item() == 1
    assert [value.item() for value in terms.metrics["calibration/with_ratio"]] == [1, 2]
    # one that does not pull on the rejected answer at all has none either
    alone = pulls(FlexDPO(beta_plus=0.5, beta_minus=0.0, calibrate="per_pair"))
    assert torch.equal(alone[0], pulls(FlexDPO(beta_plus=0.5, beta_minus=0.0))[0])
    assert {n.item() for _, n in alone[2].running.values()} == {0.0}


def test_a_pull_next_to_nothing_does_not_take_the_other_side_with_it() -> None:
    nearly_none = FlexDPO(beta_plus=0.5, beta_minus=1e-9)
    w, down, _ = pulls(nearly_none)
    scaled_w, scaled_down, _ = pulls(replace(nearly_none, calibrate="per_pair"))
    torch.testing.assert_close(scaled_w, w / 10, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled_down, down * 10, rtol=1e-12, atol=0)


def test_the_band() -> None:
    # DPO has r = 1: inside (rho r*, r* / rho) = (1, 4)? On its edge, so no; with a negative cosine always
    terms = pulls(DPO(beta=0.5, calibrate=True))[2]
    assert mean(terms, "in_band") == 0.5
    assert mean(terms, "cosine") == pytest.approx((0.5 - 0.2) / 2, rel=1e-12, abs=0)
    # nearer to r* = 2 both are inside
    assert mean(pulls(FlexDPO(beta_plus=0.5, beta_minus=0.4, calibrate=True))[2], "in_band") == 1.0


def test_parts_of_a_sum_keep_means_of_their_own() -> None:
    both = WeightedSum(((NLL(), 0.1), (DPO(beta=0.5, calibrate=True), 1.0), (FlexDPO(0.5, 0.25, calibrate=True), 1.0)))
    _, policy, reference = measured()
    assert set(both(policy, reference).running) == {"1.log_r", "1.log_wanted", "2.log_r", "2.log_wanted"}
    only_dpo = {"1.log_r": 0.0, "1.log_wanted": math.log(9.0)}
    w, down, _ = pulls(both, only_dpo)
    dpo, flex = pulls(DPO(beta=0.5)), pulls(FlexDPO(0.5, 0.25))
    torch.testing.assert_close(w, 3 * dpo[0] + flex[0] + 0.1, rtol=1e-12, atol=0)
    torch.testing.assert_close(down, dpo[1] / 3 + flex[1], rtol=1e-12, atol=0)


def test_evaluation_needs_no_gradients_and_scales_none() -> None:
    _, policy, reference = measured()
    with torch.no_grad():
        terms = DPO(beta=0.5, calibrate=True)(policy, reference)
    assert not terms.running
    assert torch.equal(terms.losses[0].losses, DPO(beta=0.5)(policy, reference).losses[0].losses)


# ---- on a language model, over its head, where the measure is exact


def same_ending(seed: int, count: int = 1) -> TreeBatch:
    """Pairs that differ in their first token alone and go on for twelve more: their gradients are nearly parallel."""
    ids = token_ids(seed)
    pairs = []
    for _ in range(count):
        prompt, first, second, rest = ids(6), ids(1), ids(1), ids(12)
        branches = (Branch("chosen", [*first, *rest]), Branch("rejected", [*second, *rest]))
        pairs.append(Example((Tree(prompt, branches),)))
    return pack(pairs)


def trained(calibrate: Any, steps: int, rate: float) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    """Log-ratios d_w and d_l before every step of gradient descent on the head, and the last running means."""
    model = tiny_model(dtype=torch.float64, seed=1)
    attach(model)
    batch, engine, objective = same_ending(6), ScoringEngine(), DPO(beta=0.1, calibrate=calibrate)
    with torch.no_grad():
        reference = engine(model, batch)
    weight = model.get_output_embeddings().weight
    means: dict[str, Tensor] = {}
    path = []
    for _ in range(steps):
        policy = replace(engine(model, batch, objective.reads()), running=means)
        terms = objective(policy, reference)
        path.append(tuple((policy.sum(b) - reference.sum(b)).item() for b in ("chosen", "rejected")))
        (gradient,) = torch.autograd.grad(terms.losses[0].losses.mean(), weight)
        with torch.no_grad():
            weight -= rate * gradient
        now = {key: (total / count).detach() for key, (total, count) in terms.running.items()}
        means = {key: 0.98 * means.get(key, value) + 0.02 * value for key, value in now.items()}
    return path, means


def test_chosen_answers_stop_falling() -> None:
    falls, _ = trained(False, 150, 0.2)
    top = max(w for w, _ in falls)
    assert top > 9
    assert falls[-1][0] < top - 3  # DPO drags the chosen answer down again, together with the rejected one
    rises, means = trained(True, 150, 0.2)
    assert rises[-1][0] == max(w for w, _ in rises) > falls[-1][0] + 3
    assert rises[-1][1] == min(down for _, down in rises) < -15
    assert means["log_wanted"] > 0.2
    rises, _ = trained("per_pair", 40, 0.2)
    steps = pairwise(rises)
    assert all(after[0] > before[0] and after[1] < before[1] for before, after in steps)  # in every step
