"""AlpacaEval's figures: win rates of a model against a reference, and the win rate at equal length.

Source: Dubois et al. 2024 (arXiv 2404.04475) and the settings of the authors' package (``length_controlled_v1``).
Every figure is a percentage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_ANCHOR_WEIGHT = 0.2 / 2  # of each row of the two anchor models
_FOLDS = 5
_STRENGTHS = np.logspace(
    -4, 4, 10
)  # of the likelihood beside the penalty, the best of which is chosen on held-out rows


class WinRate(NamedTuple):
    """Preferences counted: means over rows, and wins of the model and of the reference."""

    win_rate: float
    standard_error: float
    discrete_win_rate: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int


class LengthControlled(NamedTuple):
    """The win rate that the model would have with answers as long as the reference's, and its standard error.

    ``weights`` are those of length, difficulty and the model itself.
    """

    win_rate: float
    standard_error: float
    weights: tuple[float, float, float]


@dataclass(frozen=True)
class Anchors:
    """Rows of the two anchor models, which keep the fit of the length's weight in place.

    Attributes:
        preference: [n], from 0 (the reference wins) to 1.
        difference: [n], length of the reference less that of the anchor, over its standard deviation.
        difficulty: [n], of the row's instruction.
    """

    preference: np.ndarray
    difference: np.ndarray
    difficulty: np.ndarray


def win_rate(preference: np.ndarray) -> WinRate:
    """Figures of ``preference`` [n], from 0 (the reference wins) to 1; at least two rows, all of them judged."""
    n = len(preference)
    wins, draws = int((preference > 0.5).sum()), int((preference == 0.5).sum())
    return WinRate(
        100 * float(preference.mean()),
        100 * float(preference.std(ddof=1)) / n**0.5,
        100 * (wins + draws / 2) / n,
        wins,
        n - wins - draws,
        draws,
        n,
    )


def length_controlled(
    preference: np.ndarray, lengths: np.ndarray, reference_lengths: np.ndarray, difficulty: np.ndarray, anchors: Anchors
) -> LengthControlled:
    """The length-controlled win rate: a logistic regression with L1 penalty, read at equal length.

    The log-odds of a win are a weight times tanh of the difference in length, plus one times the instruction's
    difficulty, plus one of the model. Of anchor rows the last is 0, and they count a tenth. The strength of the penalty
    is the one of ten that predicts held-out fifths of the rows best.

    Args:
        preference: [n], from 0 (the reference wins) to 1, NaN where the judge did not answer.
        lengths, reference_lengths: [n], characters of both answers.
        difficulty: [n], of the instruction of each row.
    """
    difference = (reference_lengths - lengths).astype(float)
    spread = difference.std(ddof=1)
    difference = difference / spread if spread else difference
    features = np.concatenate(
        [_features(anchors.difference, anchors.difficulty, 0.0), _features(difference, difficulty, 1.0)]
    )
    target = np.concatenate([anchors.preference, preference])
    weight = np.concatenate([np.full(len(anchors.preference), _ANCHOR_WEIGHT), np.ones(len(preference))])
    known = ~np.isnan(target)
    features, target, weight = features[known], target[known], weight[known]
    best = min(_STRENGTHS, key=lambda strength: _held_out_loss(features, target, weight, strength))
    fitted = fit(features, target, weight, best)
    predicted = _logistic(_features(np.zeros(len(difficulty)), difficulty, 1.0) @ fitted)
    error = float(predicted.std(ddof=1)) / len(predicted) ** 0.5
    return LengthControlled(100 * float(predicted.mean()), 100 * error, tuple(map(float, fitted)))  # type: ignore[arg-type]


def fit(features: np.ndarray, target: np.ndarray, weight: np.ndarray, strength: float) -> np.ndarray:
    """Weights [k] that minimise ``sum|b| + strength * sum_i weight_i * cross_entropy(target_i, features_i @ b)``.

    The minimum itself, by Newton's method with the penalty kept as it is. The authors' solver (liblinear) stops within
    some 1e-3 of it, which moves a win rate by up to 0.01 points.

    Args:
        features: [n, k].
        target: [n], probabilities.
        weight: [n].
    """

    def loss(b: np.ndarray) -> float:
        return float(np.abs(b).sum() + strength * (weight * _cross_entropy(target, features @ b)).sum())

    found = np.zeros(features.shape[1])
    for _ in range(100):
        chance = _logistic(features @ found)
        slope = strength * features.T @ (weight * (chance - target))
        curve = strength * (features.T * (weight * chance * (1 - chance))) @ features
        step = _penalised_step(found, slope, curve)
        now = loss(found)
        while loss(found + step) > now + 1e-12 * abs(now) and np.abs(step).max() > 1e-12:
            step = step / 2
        found = found + step
        if np.abs(step).max() < 1e-10:
            break
    return found


def _penalised_step(at: np.ndarray, slope: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """The step that minimises ``slope @ step + step @ curve @ step / 2 + sum|at + step|``, one weight at a time."""
    step = np.zeros(len(at))
    for _ in range(1000):
        before = step.copy()
        for j in range(len(at)):
            bend = max(curve[j, j], 1e-12)
            wanted = at[j] + step[j] - (slope[j] + curve[j] @ step) / bend
            step[j] = np.sign(wanted) * max(abs(wanted) - 1 / bend, 0.0) - at[j]
        if np.abs(step - before).max() < 1e-13:
            break
    return step


def _held_out_loss(features: np.ndarray, target: np.ndarray, weight: np.ndarray, strength: float) -> float:
    """Sum over folds of the mean weighted cross-entropy of rows that were not fitted."""
    fold = np.arange(len(target))[::-1] % _FOLDS  # rows are dealt out from the last one, as scikit-learn deals groups
    total = 0.0
    for number in range(_FOLDS):
        out = fold == number
        fitted = fit(features[~out], target[~out], weight[~out], strength)
        total += float((weight[out] * _cross_entropy(target[out], features[out] @ fitted)).mean())
    return total


def _features(difference: np.ndarray, difficulty: np.ndarray, own: float) -> np.ndarray:
    return np.stack([np.tanh(difference), difficulty, np.full(len(difficulty), own)], axis=1)


def _cross_entropy(target: np.ndarray, odds: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, odds) - target * odds


def _logistic(odds: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -odds))


def preference_of(first: float | None, second: float | None, *, switched: bool) -> float:
    """A row's preference, from 0 (the reference wins) to 1, by the judge's log-probs of its two letters in nats.

    NaN where it gave neither.

    Args:
        first, second: log-prob of the letter of the answer shown first, and of the other; None where it is not among
            the tokens that the judge lists.
        switched: whether the model's answer was shown first and the reference's second.
    """
    if first is None and second is None:
        return float("nan")
    a, b = (-np.inf if logp is None else logp for logp in (first, second))
    chance = float(np.exp(b - np.logaddexp(a, b)))
    return 1 - chance if switched else chance


def position_bias(preference: Sequence[float], switched: Sequence[bool]) -> tuple[float, float]:
    """How much likelier the judge takes the answer shown first than the other, in points, and its standard error.

    It is the mean preference for the model where its answer was shown first, less that where it was shown second.
    Orders are drawn by lot, so a judge that reads both alike comes near 0. Rows that were not judged are left out. NaN
    where an order has fewer than two.
    """
    values, first = np.asarray(preference, dtype=float), np.asarray(switched, dtype=bool)
    groups = [values[(first == order) & ~np.isnan(values)] for order in (True, False)]
    if min(map(len, groups)) < 2:
        return float("nan"), float("nan")
    gap = groups[0].mean() - groups[1].mean()
    error = sum(group.var(ddof=1) / len(group) for group in groups) ** 0.5
    return 100 * float(gap), 100 * float(error)
