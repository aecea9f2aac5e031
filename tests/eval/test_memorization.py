"""Memorisation and membership scores of one text, against brute force and against closed forms."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from align.eval.membership import LogProbVariance, attack_scores
from align.eval.memorization import exact_memorization, extraction_strength, min_k, min_k_plus_plus, zlib_score


def _by_greedy(hits: list[int]) -> float:
    """Extraction strength by its definition: the shortest prefix after which all that follows is reproduced."""
    n = len(hits)
    prefix = next(k for k in range(n + 1) if all(hits[k:]))
    return 1 - prefix / n


@pytest.mark.parametrize("n", [1, 2, 5])
def test_extraction_strength_is_the_shortest_prefix_that_suffices(n: int) -> None:
    for code in range(2**n):
        hits = [code >> i & 1 for i in range(n)]
        array = np.array(hits, dtype=float)
        assert extraction_strength(array, corrected=True) == pytest.approx(_by_greedy(hits), abs=1e-15)
        # the floor of open-unlearning's loop, which stops before it comes to the empty rest
        assert extraction_strength(array) == pytest.approx(max(_by_greedy(hits), 1 / n), abs=1e-15)
        assert (extraction_strength(array) == 1) == (exact_memorization(array) == 1 or n == 1)
        assert (extraction_strength(array, corrected=True) == 1) == (exact_memorization(array) == 1)
        assert exact_memorization(array) == sum(hits) / n
        if extraction_strength(array) > 1 / n:
            assert hits[-1] == 1


def test_no_tokens_have_no_score() -> None:
    nothing = np.array([])
    scores = [exact_memorization(nothing), extraction_strength(nothing), min_k(nothing)]
    assert all(map(math.isnan, [*scores, min_k_plus_plus(nothing, nothing, nothing)]))


def test_min_k_takes_the_least_likely_tokens() -> None:
    logps = np.array([-1.0, -5.0, -2.0, -4.0, -3.0])
    assert min_k(logps) == 4.5  # floor(0.4 * 5) = 2 of them: -5 and -4
    assert min_k(logps, 1.0) == 3.0  # all of them: the mean loss
    assert min_k(logps, 0.1) == 5.0  # at least one
    assert min_k(np.array([-1.0, -5.0, -2.0, -4.0])) == 5.0  # floor(1.6) = 1


def test_min_k_plus_plus_standardises_by_mean_and_deviation() -> None:
    logps, entropies, variances = np.array([-2.0, -1.0, -6.0]), np.array([1.0, 2.0, 4.0]), np.array([4.0, 0.25, 1.0])
    # (-2+1)/2 = -0.5, (-1+2)/0.5 = 2, (-6+4)/1 = -2
    assert min_k_plus_plus(logps, entropies, variances) == 2.0
    assert min_k_plus_plus(logps, entropies, variances, 1.0) == pytest.approx(0.5 / 3)
    assert min_k_plus_plus(np.array([-1.0]), np.array([0.0]), np.array([1e-12])) == pytest.approx(1000.0)


def test_the_moments_are_those_of_log_p_under_p() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(7, 40, dtype=torch.float64)
    target = torch.arange(7)
    p = logits.softmax(-1)
    mu = (p * p.log()).sum(-1)
    second = (p * p.log() ** 2).sum(-1)
    torch.testing.assert_close(LogProbVariance().chunk(logits, target, None), second - mu**2, rtol=1e-12, atol=1e-12)


def test_a_uniform_distribution_scores_zero() -> None:
    logits = torch.full((5, 1000), 3.7)
    target = torch.arange(5)
    variance = LogProbVariance().chunk(logits, target, None).numpy()
    logps = np.full(5, -math.log(1000))
    # in float32: the difference of the two second moments would be about 1e-5, which is above the floor
    assert abs(min_k_plus_plus(logps, -logps, variance)) < 1e-6
    assert variance.max() < 1e-9


def test_attack_scores_count_the_end_token_where_open_unlearning_does() -> None:
    values = {
        "logp": np.array([-1.0, -3.0, -2.0, -10.0]),
        "entropy": np.zeros(4),
        "logp_variance": np.ones(4),
    }
    text = "Größe" * 9
    scores = attack_scores(values, text, 3)
    assert scores["mia_loss"] == 4.0
    assert scores["mia_zlib"] == 4.0 / len(zlib.compress(text.encode("utf-8"))) == zlib_score(4.0, text)
    assert scores["mia_min_k"] == scores["mia_min_k_plus_plus"] == 3.0  # floor(0.4 * 3) = 1
