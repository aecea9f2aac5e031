"""The exact two-sample Kolmogorov-Smirnov test, which forget quality is the p-value of."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ks:
    """Two samples of ``n`` and ``m`` values: the greatest distance ``d`` of their distribution functions, and its p."""

    d: float
    n: int
    m: int
    p: float

    def to_json(self) -> dict[str, float | int]:
        """Plain JSON."""
        return {"D": self.d, "n": self.n, "m": self.m, "p": self.p}


def ks_test(first: np.ndarray, second: np.ndarray) -> Ks:
    """Two-sided test that ``first`` [n] and ``second`` [m] come from one distribution, with the exact p-value.

    The asymptotic p is too small: 0.98 times the exact one where p is near 1, about 0.8 times at p 0.05 and n 40, and
    less than 0.001 times far out in the tail. scipy computes the exact one, but
    gives up with a warning for some distances and sizes; there the paths are counted here. Values must not be NaN.
    Raises ValueError for an empty sample.
    """
    from scipy.stats import ks_2samp

    n, m = len(first), len(second)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            found = ks_2samp(first, second, method="exact")
            return Ks(float(found.statistic), n, m, float(found.pvalue))
        except RuntimeWarning:
            pass
    values = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(sample), values, side="right") for sample in (first, second)]
    steps = int(np.abs(below[0] * m - below[1] * n).max())  # n m D, a whole number
    return Ks(steps / (n * m), n, m, _tail(steps, n, m))


def _tail(steps: int, n: int, m: int) -> float:
    """P(n m D >= steps): the share of lattice paths from (0, 0) to (n, m) that leave the band around the diagonal.

    Of the paths to (i, j), the share i / (i + j) comes through (i - 1, j). Sums of positive terms only, so that small
    shares keep their digits.
    """
    left = np.zeros(m + 1)
    for i in range(n + 1):
        for j in range(m + 1):
            if abs(i * m - j * n) >= steps:
                left[j] = 1.0
            elif i or j:
                left[j] = (i * left[j] + (j * left[j - 1] if j else 0.0)) / (i + j)
    return float(left[m])
