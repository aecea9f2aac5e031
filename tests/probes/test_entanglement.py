"""Gradient entanglement on numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives.entanglement import CASES, Products
from align.probes.entanglement import BetaRatio, beta_ratio, entanglement_reading, same_case


def products(*columns: list[float]) -> Products:
    """|g_w|^2, |g_l|^2 and <g_w, g_l> of pairs."""
    return Products(*(torch.tensor(column, dtype=torch.float64) for column in columns))


# <g_w, g_l> = 2 each time: ideal with equal pulls; |g_w|^2 too small; |g_l|^2 too small; no common direction
PAIRS = products([3.0, 1.0, 8.0, 1.0], [8.0, 8.0, 1.0, 1.0], [2.0, 2.0, 2.0, -1.0])
EQUAL = (torch.full((4,), 0.5, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64))


def test_changes_and_cases_worked_by_hand() -> None:
    chosen, rejected = PAIRS.changes(*EQUAL)
    assert chosen.tolist() == [0.5, -0.5, 3.0, 1.0]
    assert rejected.tolist() == [-3.0, -3.0, 0.5, -1.0]
    cases = {name: flags.tolist() for name, flags in PAIRS.cases(*EQUAL).items()}
    assert cases["ideal"] == [True, False, False, True]
    assert cases["both_down"] == [False, True, False, False]
    assert cases["both_up"] == [False, False, True, False]
    assert not any(cases["reversed"] + cases["still"])
    # half the pull on rejected answers: the second pair's chosen answer stays, the first one's and the last one's go on
    halved = {name: flags.tolist() for name, flags in PAIRS.cases(EQUAL[0], EQUAL[1] / 2).items()}
    assert halved["ideal"] == [True, False, False, True]
    assert halved["both_down"] == [False, True, False, False]
    turned = {name: flags.tolist() for name, flags in PAIRS.cases(-EQUAL[0], -EQUAL[1]).items()}
    assert turned["reversed"] == [True, False, False, True]
    none = torch.zeros(4, dtype=torch.float64)
    assert PAIRS.cases(none, none)["still"].all()


def test_every_pair_is_in_one_case_and_none_is_reversed_by_pulls_of_the_usual_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 2000, 3, generator=generator, dtype=torch.float64)
    some = Products((both[0] ** 2).sum(1), (both[1] ** 2).sum(1), (both[0] * both[1]).sum(1))
    pulls = torch.rand(2, 2000, generator=generator, dtype=torch.float64) + 0.01
    cases = some.cases(pulls[0], pulls[1])
    assert tuple(cases) == CASES
    assert torch.stack(list(cases.values())).sum(0).eq(1).all()
    assert not cases["reversed"].any()
    assert all(cases[name].sum() > 100 for name in ("ideal", "both_up", "both_down"))
    # the band of the ratio of pulls is the ideal case
    low, high = some.band
    assert torch.equal((low < pulls[1] / pulls[0]) & (pulls[1] / pulls[0] < high), cases["ideal"])
    inside = torch.where(high.isinf(), 0.0, (low.log() + high.log()) / 2)
    torch.testing.assert_close(inside[~high.isinf()], some.log_ratio[~high.isinf()])


def test_the_reading_is_of_these_numbers() -> None:
    reading = entanglement_reading("head", PAIRS, EQUAL)
    assert (reading["of"], reading["n"], reading["left_out"]) == ("head", 4, 0)
    assert reading["cases"] == {"ideal": 2, "both_up": 1, "both_down": 1, "reversed": 0, "still": 0}
    assert reading["inner"] == 2.0
    assert reading["chosen_norm"] == pytest.approx((1 + math.sqrt(3)) / 2, rel=1e-12, abs=0)
    assert reading["rejected_norm"] == pytest.approx((1 + math.sqrt(8)) / 2, rel=1e-12, abs=0)
    cosines = (2 / math.sqrt(24), 2 / math.sqrt(8), 2 / math.sqrt(8), -1.0)
    assert reading["cosine"]["value"] == pytest.approx(sum(cosines) / 4, rel=1e-12, abs=0)
    assert reading["pull_ratio"] == 1.0
    assert (reading["share_at_one"], reading["share_at_best"]) == (0.5, 0.75)
    assert reading["best"] == pytest.approx(math.sqrt(0.25 * 0.5), rel=1e-12, abs=0)
    assert reading["predicted"] == {"chosen": 1.0, "rejected": -1.625}


def test_pairs_without_numbers_are_left_out_and_counted() -> None:
    broken = products([3.0, 0.0, math.inf, 1.0], [8.0, 8.0, 1.0, math.nan], [2.0, 0.0, 2.0, 1.0])
    reading = entanglement_reading("head", broken, EQUAL)
    assert (reading["n"], reading["left_out"]) == (1, 3)
    assert reading["cases"]["ideal"] == 1
    nothing = entanglement_reading("head", products([0.0], [1.0], [0.0]), (EQUAL[0][:1], EQUAL[1][:1]))
    assert nothing == {"of": "head", "n": 0, "left_out": 1}


def test_two_measures_agree_where_they_come_to_one_case() -> None:
    other = products([3.0, 9.0, 8.0, math.nan], [8.0, 8.0, 1.0, 1.0], [2.5, 2.0, 2.0, -1.0])
    assert same_case(PAIRS, PAIRS, EQUAL) == 4
    assert same_case(PAIRS, other, EQUAL) == 2  # the second is ideal there, and the fourth is no number
    none = torch.zeros(4, dtype=torch.float64)
    assert same_case(PAIRS, other, (none, none)) == 3  # all stay still, but what is no number is in no case


def test_beta_ratio_of_one_pair_is_the_interval_of_the_paper() -> None:
    # <g_w, g_l> = 2, |g_w|^2 = 3, |g_l|^2 = 8: 2/8 < ratio < 3/2, geometric mean sqrt(3/8) = |g_w| / |g_l|
    found = beta_ratio(Products(torch.tensor([3.0]), torch.tensor([8.0]), torch.tensor([2.0])))
    assert found == BetaRatio(0.25, 1.5, 1.0, 1.0, 1.0, 1)
    # |g_w|^2 <= <g_w, g_l>: equal betas push both down, 1/4 < ratio < 1/2 does not
    found = beta_ratio(Products(torch.tensor([0.5]), torch.tensor([4.0]), torch.tensor([1.0])))
    assert (found.low, found.high, found.share_at_one, found.share_at_best) == (0.25, 0.5, 0.0, 1.0)
    assert found.best == pytest.approx(math.sqrt(0.125))


def test_beta_ratio_finds_what_serves_most_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    rejected = 2.0 * chosen + torch.randn(50, 6, generator=generator, dtype=torch.float64)
    inner, w_w, l_l = (chosen * rejected).sum(1), (chosen**2).sum(1), (rejected**2).sum(1)
    found = beta_ratio(Products(w_w, l_l, inner))

    def share(ratio: float) -> float:  # straight from the first-order changes of the two log-probs
        return ((w_w - ratio * inner > 0) & (inner - ratio * l_l < 0)).double().mean().item()

    assert found.share_at_one == pytest.approx(share(1.0))
    assert found.share_at_best == pytest.approx(share(found.best))
    assert found.share_at_best >= max(share(10 ** (k / 200)) for k in range(-400, 400))
    assert found.share_at_best > found.share_at_one


def test_beta_ratio_without_conflict_has_no_upper_end() -> None:
    found = beta_ratio(Products(torch.ones(2), torch.ones(2), torch.tensor([-1.0, 0.0])))
    assert found == BetaRatio(0.0, None, 1.0, 1.0, 1.0, 2)
