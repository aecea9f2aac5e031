"""Gradient entanglement on numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives.entanglement import Products
from align.probes.entanglement import BetaRatio, beta_ratio


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
