"""Memorisation and membership scores of one text, from what a model says of each of its tokens. Numpy only.

Formulas as in open-unlearning: exact memorisation (arXiv 2210.17546), extraction strength (arXiv 2307.03501), min-k
(arXiv 2310.16789) and min-k++ (arXiv 2404.02936). Every array is [T], one value per target token.
"""

from __future__ import annotations

import zlib

import numpy as np

K = 0.4  # share of the least likely tokens that min-k and min-k++ look at
_VARIANCE_FLOOR = 1e-6


def exact_memorization(hits: np.ndarray) -> float:
    """Share of tokens that are the model's first choice given the true text before them; NaN for no tokens.

    ``hits`` holds 1 where the token is the most likely one, else 0.
    """
    return float(hits.mean()) if hits.size else float("nan")


def extraction_strength(hits: np.ndarray, *, corrected: bool = False) -> float:
    """Share of the text that greedy decoding reproduces to its end from the shortest prefix that suffices.

    With teacher-forced hits this is the length of the last run of hits over the length of the text. open-unlearning's
    loop cannot come to "not even the last token", so its value is never below 1/T; ``corrected`` gives 0 there. NaN for
    no tokens.
    """
    if not hits.size:
        return float("nan")
    misses = np.flatnonzero(hits == 0)
    run = hits.size - 1 - int(misses[-1]) if misses.size else hits.size
    return (run if corrected else max(run, 1)) / hits.size


def min_k(logps: np.ndarray, k: float = K) -> float:
    """Minus the mean of the lowest ``k`` share of token log-probs, at least one of them; nats. NaN for no tokens."""
    return _lowest(logps, k)


def min_k_plus_plus(logps: np.ndarray, entropies: np.ndarray, variances: np.ndarray, k: float = K) -> float:
    """``min_k`` of log-probs standardised by what the model expects at each place.

    ``entropies`` are -sum p log p, so that the expected log-prob is minus that; ``variances`` are those of log p under
    p. A variance below 1e-6 counts as 1e-6.
    """
    return _lowest((logps + entropies) / np.sqrt(np.maximum(variances, _VARIANCE_FLOOR)), k)


def zlib_score(loss: float, text: str) -> float:
    """Mean token loss over the length of the zlib-compressed UTF-8 text, nats per byte."""
    return loss / len(zlib.compress(text.encode("utf-8")))


def _lowest(values: np.ndarray, k: float) -> float:
    if not values.size:
        return float("nan")
    kept = max(1, int(k * values.size))
    return float(-np.sort(values)[:kept].mean())
