"""How the gradients of the two answers of a pair lie to each other (gradient entanglement, arXiv 2410.13828).

The mathematics of a pair is in ``align.objectives.entanglement``; here is what is said of many pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.objectives.entanglement import CASES, Products
from align.stats import bootstrap_mean, finite

RESAMPLES = 1999


@dataclass(frozen=True)
class BetaRatio:
    """For which beta_minus / beta_plus a step raises the chosen and lowers the rejected answer, to first order of SGD.

    ``low`` and ``high`` are medians over pairs of the two ends; ``high`` is None where most pairs have no upper end.
    ``share_at_one`` is the share of pairs that equal betas (DPO) serve, ``share_at_best`` the share that ``best`` does.
    """

    low: float
    high: float | None
    best: float
    share_at_one: float
    share_at_best: float
    n: int


def beta_ratio(products: Products) -> BetaRatio:
    """The bands of all pairs together, see ``Products.band``; ``best`` is the ratio nearest 1 that serves most pairs.

    Adam rescales gradients, so there it is a hint. Raises ValueError for no pairs, and for a gradient that is 0.
    """
    if not products.inner.numel() or min(products.chosen_square.min(), products.rejected_square.min()) <= 0:
        raise ValueError("gradient products must be of one pair or more, and squared norms positive")
    low, high = (end.cpu().double().numpy() for end in products.band)
    ends = np.unique(np.concatenate([low[low > 0], high[np.isfinite(high)]]))
    # between two neighbouring ends the set of served pairs does not change, so one candidate for each gap is exact
    between = np.sqrt(ends[:-1] * ends[1:]) if ends.size > 1 else ends
    candidates = np.concatenate([[1.0], between])
    served = np.array([((low < c) & (c < high)).mean() for c in candidates])
    best = min(np.flatnonzero(served == served.max()), key=lambda k: abs(np.log(candidates[k])))
    return BetaRatio(
        low=float(np.median(low)),
        high=finite(float(np.median(high))),
        best=float(candidates[best]),
        share_at_one=float(served[0]),
        share_at_best=float(served[best]),
        n=len(low),
    )


def measured(products: Products, pulls: tuple[Tensor, Tensor]) -> Tensor:
    """Which pairs [n] have numbers at all: no gradient is 0 and nothing overflowed."""
    values = torch.stack([*products, *pulls])
    return values.isfinite().all(0) & (products.chosen_square > 0) & (products.rejected_square > 0)


def entanglement_reading(of: str, products: Products, pulls: tuple[Tensor, Tensor], *, seed: int = 0) -> dict[str, Any]:
    """What ``metrics.jsonl`` says of gradients over the weights ``of``, as plain JSON.

    ``n`` pairs were measured and ``left_out`` were not, since a gradient of theirs was 0 or not finite. ``inner``,
    ``chosen_norm``, ``rejected_norm`` and ``pull_ratio`` (pull_l / pull_w, 1 for DPO) are medians over pairs,
    ``cosine`` is a mean with its interval, ``cases`` counts ``CASES`` for the objective's own pulls; the fields of
    ``BetaRatio`` follow. ``predicted`` is what a step of gradient descent on a pair alone changes, the mean over pairs,
    in nats per unit of the learning rate.
    """
    known = measured(products, pulls)
    products = Products(*(column[known] for column in products))
    pull_w, pull_l = (pull[known] for pull in pulls)
    counts = {"of": of, "n": int(known.sum()), "left_out": int((~known).sum())}
    if not counts["n"]:
        return counts
    chosen, rejected = products.changes(pull_w, pull_l)
    cosine = bootstrap_mean(products.cosine.cpu().double().numpy(), seed, resamples=RESAMPLES)
    return {
        **counts,
        "inner": _median(products.inner),
        "chosen_norm": _median(products.chosen_square.sqrt()),
        "rejected_norm": _median(products.rejected_square.sqrt()),
        "cosine": cosine.to_json(),
        "pull_ratio": _median(pull_l / pull_w),
        "cases": {name: int(flags.sum()) for name, flags in products.cases(pull_w, pull_l).items()},
        **{key: value for key, value in vars(beta_ratio(products)).items() if key != "n"},
        "predicted": {"chosen": finite(chosen.mean().item()), "rejected": finite(rejected.mean().item())},
    }


def same_case(a: Products, b: Products, pulls: tuple[Tensor, Tensor]) -> int:
    """In how many pairs two measures of the gradients come to the same case."""
    one, other = a.cases(*pulls), b.cases(*pulls)
    both = measured(a, pulls) & measured(b, pulls)
    return int((torch.stack([one[name] & other[name] for name in CASES]).any(0) & both).sum())


def _median(values: Tensor) -> float | None:
    """Of the numbers that are finite; a ratio to a pull of 0 is none."""
    values = values[values.isfinite()].cpu().double()
    return float(np.median(values.numpy())) if values.numel() else None
