"""How the gradients of the two answers of a pair lie to each other (gradient entanglement, arXiv 2410.13828)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from align.stats import finite


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


def beta_ratio(inner: Tensor, chosen_square: Tensor, rejected_square: Tensor) -> BetaRatio:
    """Feasible beta_minus / beta_plus from per-pair gradient products, each [n].

    With g = grad log pi(y|x) and ip = <g_w, g_l> > 0, "chosen up and rejected down" holds to first order of an SGD step
    iff ip / |g_l|^2 < beta_minus / beta_plus < |g_w|^2 / ip; the interval is never empty (Cauchy-Schwarz) and its
    geometric mean is |g_w| / |g_l|. With ip <= 0 every ratio serves. Adam rescales gradients, so there it is a hint.
    """
    products = (inner, chosen_square, rejected_square)
    ip, w_w, l_l = (torch.as_tensor(x).detach().cpu().to(torch.float64).numpy() for x in products)
    if not (ip.shape == w_w.shape == l_l.shape and ip.ndim == 1 and ip.size and min(w_w.min(), l_l.min()) > 0):
        raise ValueError("gradient products must be flat, of one length, not empty, and squared norms positive")
    low = np.where(ip > 0, ip / l_l, 0.0)
    high = np.where(ip > 0, w_w / np.where(ip > 0, ip, 1.0), np.inf)
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
        n=int(ip.size),
    )
