"""Intervals for shares and for means, so that no number is reported without one.

Importing this module imports neither torch nor scipy: verdicts and tables need the closed form only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate from ``n`` items with the ends of its confidence interval, all in the unit of the estimate."""

    value: float
    low: float
    high: float
    n: int

    def within(self, low: float, high: float) -> Interval:
        """The same with both ends where such an estimate can be: a share has no interval that leaves 0 to 1."""
        return Interval(self.value, max(low, self.low), min(high, self.high), self.n)

    def to_json(self) -> dict[str, float | int | None]:
        """Plain JSON; a value that is not finite becomes null, which JSON can hold and NaN cannot."""
        return {"value": finite(self.value), "low": finite(self.low), "high": finite(self.high), "n": self.n}

    @classmethod
    def from_json(cls, data: Any) -> Interval | None:
        """The interval that ``to_json`` wrote, or None where nothing finite was recorded."""
        read = data if isinstance(data, Mapping) else {}
        value, low, high, n = (finite(read.get(key)) for key in ("value", "low", "high", "n"))
        if value is None or low is None or high is None or n is None:
            return None
        return cls(value, low, high, int(n))


def finite(value: Any) -> float | None:
    """``value`` as a float, or None where it is missing, infinite or no number; a file may hold anything."""
    if value is None or isinstance(value, str):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def wilson(k: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Score interval of Wilson (1927) for a share of ``k`` hits among ``n``, without continuity correction.

    ``k`` may be fractional, because ties count as half a hit; the interval is then somewhat too wide. That is why the
    closed form stands here: scipy's ``binomtest(k, n).proportion_ci(method="wilson")`` agrees on whole numbers and
    refuses others. Raises ValueError unless 0 <= k <= n and n >= 1.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"a share needs 0 <= k <= n and n >= 1, got k={k}, n={n}")
    z = _quantile(confidence)
    share, shrink = k / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at the ends the closed form equals 0 and 1 but for rounding
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return Interval(share, low, high, n)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, seed: int, *, confidence: float = 0.95, resamples: int = 9999
) -> Interval:
    """Mean of ``values`` [n] with a bias-corrected, accelerated bootstrap interval (scipy), widened for few items.

    A bootstrap of n items knows (n - 1) / n of their variance, and no more of its own uncertainty than a normal
    distribution does; so both ends are moved away from the mean by sqrt(n / (n - 1)) times the quotient of Student's
    quantile and the normal one. That is 3 % at 64 items, 12 % at 16 and a factor of 2.7 at 3, where normal values are
    covered 95 times in a hundred in place of 71.

    For a paired comparison pass the differences, one per item: then items are resampled whole, and what makes an item
    hard for both sides cancels. Deterministic in ``seed``. Equal values, and a single one, have nothing to resample and
    give an interval of width 0, resp. one of unbounded width. Raises ValueError for no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    return _bootstrap((sample,), _mean, seed, confidence, resamples)


def bootstrap_ratio(
    totals: Sequence[float] | np.ndarray,
    sizes: Sequence[float] | np.ndarray,
    seed: int,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
) -> Interval:
    """``sum(totals) / sum(sizes)``, both [n], with items resampled whole; for nats per token, long answers weigh more.

    Otherwise as ``bootstrap_mean``. Raises ValueError for no items, unequal lengths or a size that is not positive.
    """
    top, bottom = np.asarray(totals, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    if top.shape != bottom.shape or not (bottom > 0).all():
        raise ValueError("totals and sizes need the same length, and every size must be positive")
    return _bootstrap((top, bottom), _ratio, seed, confidence, resamples)


def _bootstrap(
    samples: tuple[np.ndarray, ...], statistic: Any, seed: int, confidence: float, resamples: int
) -> Interval:
    n = samples[0].size
    if samples[0].ndim != 1 or n == 0:
        raise ValueError("an interval needs a flat list of at least one value")
    value = float(statistic(*samples))
    if not math.isfinite(value):
        return Interval(math.nan, math.nan, math.nan, n)
    if n == 1:
        return Interval(value, -math.inf, math.inf, n)
    # each item's pull on the estimate; where there is none, scipy's interval is 0/0
    pull = samples[0] - value * (samples[1] if len(samples) == 2 else 1.0)
    if np.abs(pull).max() <= 1e-12 * max(1.0, float(np.abs(samples[0]).max())):
        return Interval(value, value, value, n)
    from scipy.stats import bootstrap

    found = bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        paired=len(samples) > 1,
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    wider = _student(confidence, n - 1) / _quantile(confidence) * math.sqrt(n / (n - 1))
    return Interval(value, value - wider * (value - float(found.low)), value + wider * (float(found.high) - value), n)


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.mean(axis=axis)


def _ratio(totals: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
    return totals.sum(axis=axis) / sizes.sum(axis=axis)


def _student(confidence: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a share between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
