"""Flex-DPO whose beta_minus is measured: worked numbers, its bounds, and what takes its place where nothing is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from objectives.test_calibration import measured, pulls
from torch import Tensor

from align.engine.reads import HeadGradients, LogProb
from align.errors import UserError
from align.objectives import DPO, NLL, FlexDPO, Terms, WeightedSum
from align.recipe import Recipe

AUTO = FlexDPO(0.5, "auto")


def with_mean(log_ratio: float | None) -> tuple[Tensor, Tensor, Terms]:
    """Pulls on both answers and the terms, after past steps with this mean of log |g_w| / |g_l|."""
    return pulls(AUTO, None if log_ratio is None else {"log_ratio": log_ratio})


def same(found: tuple[Tensor, Tensor, Terms], plain: FlexDPO | DPO) -> None:
    """Pulls and rewards are those of a number in place of auto."""
    chosen, rejected, terms = pulls(plain)
    torch.testing.assert_close(found[0], chosen, rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], rejected, rtol=1e-6, atol=0)
    for key in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        torch.testing.assert_close(found[2].metrics[key][0], terms.metrics[key][0], rtol=1e-6, atol=0)


def logged(terms: Terms) -> float:
    total, count = terms.metrics["flex/beta_minus"]
    return (total / count).item()


def test_the_first_step_takes_the_ratio_of_the_paper() -> None:
    found = with_mean(None)
    same(found, FlexDPO(0.5, 0.4))
    assert logged(found[2]) == pytest.approx(0.4, rel=1e-6, abs=0)


def test_later_steps_take_the_mean_of_those_before() -> None:
    found = with_mean(math.log(0.3))
    same(found, FlexDPO(0.5, 0.15))
    assert logged(found[2]) == pytest.approx(0.15, rel=1e-6, abs=0)
    own = [terms.metrics["rewards/own_accuracies"][0].item() for terms in (found[2], pulls(FlexDPO(0.5, 0.15))[2])]
    assert own[0] == own[1]


@pytest.mark.parametrize(("log_ratio", "beta_minus"), [(-9.0, 0.05), (2.0, 0.5), (math.nan, 0.4)])
def test_it_stays_within_a_tenth_of_beta_plus_and_beta_plus(log_ratio: float, beta_minus: float) -> None:
    same(with_mean(log_ratio), FlexDPO(0.5, beta_minus))


def test_what_is_measured_is_the_mean_log_ratio_of_gradient_norms() -> None:
    # |g_w| and |g_l| are 1 and 2 in the first pair, 3 and 1 in the second
    total, count = with_mean(None)[2].running["log_ratio"]
    assert total.item() == pytest.approx(math.log(1 / 2) + math.log(3), rel=1e-12, abs=0)
    assert count.item() == 2
    assert not pulls(FlexDPO(0.5, 0.4))[2].running


def test_a_pair_without_a_gradient_is_not_counted() -> None:
    _, policy, reference = measured()
    products = policy.tokens["head_gradients"].clone()
    products[0, 1] = 0.0
    terms = AUTO(replace(policy, tokens={**policy.tokens, "head_gradients": products}), reference)
    assert [value.item() for value in terms.running["log_ratio"]] == [pytest.approx(math.log(3)), 1.0]


def test_settled_it_has_a_number_and_reads_no_gradients() -> None:
    assert set(AUTO.reads()) == {LogProb(), HeadGradients()}
    assert AUTO.bare == FlexDPO(0.5, 0.4)  # before anything is measured
    assert AUTO.own_scales
    assert AUTO.margin_scale == 0.5
    settled = AUTO.settled({"log_ratio": torch.tensor(math.log(0.25), dtype=torch.float64)})
    assert settled.beta_minus == pytest.approx(0.125, rel=1e-6, abs=0)
    assert settled.bare == settled
    assert set(settled.reads()) == {LogProb()}
    assert DPO(0.3).settled({"log_ratio": torch.zeros(())}) == DPO(0.3)


def test_in_a_sum_it_has_a_mean_of_its_own() -> None:
    both = WeightedSum(((NLL(), 0.1), (AUTO, 1.0), (FlexDPO(0.2, "auto"), 1.0)))
    means = {"1.log_ratio": torch.tensor(math.log(0.5)), "2.log_ratio": torch.tensor(math.log(0.25))}
    first, second, third = (part for part, _ in both.settled(means).parts)
    assert first == NLL()
    assert [p.beta_minus for p in (second, third)] == [pytest.approx(0.25, rel=1e-6), pytest.approx(0.05, rel=1e-6)]
    _, policy, reference = measured()
    assert set(both(policy, reference).running) == {"1.log_ratio", "2.log_ratio"}


def refusal(objective: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        Recipe.from_dict({"name": "x", "model": {"id": "m"}, "data": {"train": {"path": "p"}}, "objective": objective})
    return str(caught.value)


def test_a_recipe_with_two_balances_is_refused() -> None:
    said = refusal({"name": "flex_dpo", "beta_minus": "auto", "calibrate": True})
    assert (
        "objective: beta_minus: auto and calibrate both balance the two sides, from the same gradients. Set beta_minus "
        "to a number, or remove calibrate." in said
    )


def test_a_recipe_with_another_word_is_refused() -> None:
    said = refusal({"name": "flex_dpo", "beta_minus": "measured"})
    assert "objective.beta_minus: expected a number or auto, got the text 'measured'." in said
    assert "objective.beta_minus: must be at least 0, got -0.1." in refusal({"name": "flex_dpo", "beta_minus": -0.1})
