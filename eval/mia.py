"""Membership inference from attack scores: the area under the curve, and what it leaks against a retain model.

Scores are higher for a likelier non-member (a loss, say). Forget rows are the members. Open-unlearning (commit
d3d7cf9) takes the area with holdout rows as the positive class: 1 is memorised, 0.5 is ideal. MUSE (arXiv 2407.06460)
turns it around, so that both areas add up to 1; its relative difference, ``privleak``, is the same number in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from align.eval.result import Result

ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm", "mia_reference")
Attacks = Mapping[str, tuple[np.ndarray, np.ndarray]]
EPSILON = 1e-10  # open-unlearning adds it to the denominators


def auc(forget: np.ndarray, holdout: np.ndarray) -> float:
    """Share of pairs in which the holdout row [m] scores above the forget row [n], a tie counting half.

    Items that are not a number are left out; NaN where a side has none left. Equals scikit-learn's ``roc_auc_score``
    with label 0 for forget rows and 1 for holdout rows.
    """
    members = np.sort(forget[~np.isnan(forget)])
    others = holdout[~np.isnan(holdout)]
    if not members.size or not others.size:
        return math.nan
    below = np.searchsorted(members, others, side="left") + np.searchsorted(members, others, side="right")
    return float(below.sum() / (2 * members.size * others.size))


def privleak(area: float, retain: float = 0.5) -> float:
    """100 ((1 - area) - (1 - retain)) / (1 - retain), from areas as ``auc`` gives them, on min-k scores.

    Near 0 where the model leaks as little as the retain model, -100 where every forget row is recognised. Without a
    retain model open-unlearning puts 0.5, against which a perfect model scores well above 0.
    """
    return 100 * ((1 - area) - (1 - retain)) / ((1 - retain) + EPSILON)


def rel_diff(area: float, retain: float = 0.5) -> float:
    """100 (area - retain) / retain: as ``privleak`` on the areas themselves."""
    return 100 * (area - retain) / (retain + EPSILON)


def add_privacy(result: Result, mia: Attacks, retain: Attacks | None) -> None:
    """Enter the area of each attack, and the leak that min-k shows against the retain model's scores ``retain``."""
    for name in ATTACKS:
        area = auc(*mia[name]) if name in mia else math.nan
        if math.isnan(area):
            result.missing[name] = "the log has no scores of this attack on forget and holdout rows"
        else:
            result.values[name] = area
    key = "mia_min_k"
    reference = auc(*retain[key]) if retain is not None and key in retain else math.nan
    for name, leak in (("privleak", privleak), ("rel_diff", rel_diff)):
        if key not in result.values:
            result.missing[name] = f"needs {key}"
        elif retain is None:
            result.values[name] = leak(result.values[key])
        elif math.isnan(reference):
            result.missing[name] = f"the retain log has no {key} scores"
        else:
            result.values[name] = leak(result.values[key], reference)
    if retain is None and key in result.values:
        result.notes.append(
            "privleak and rel_diff take 0.5 for the retain model's area, because there is no retain log; a retain "
            "model seldom has just that (on TOFU's forget10 about 0.38, which shows as a privleak of +23)"
        )
