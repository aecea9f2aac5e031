"""Scaling the gradients of both sides of a pair so that they weigh alike; the loss's value stays as it is.

With pulls and gradients as in ``entanglement``, both answers fall (or both rise) unless r = pull_w / pull_l lies
between rho r* and r* / rho, where r* = |g_l| / |g_w| and rho is the cosine of g_w and g_l (arXiv 2604.18239; arXiv
2410.13828 has the same interval). At r = r* both sides weigh alike. Then the chosen answer rises and the rejected one
falls, unless g_w and g_l are parallel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from align.objectives.entanglement import SIDES, Products, pulls_of

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores
    from align.objectives.base import Terms
    from align.objectives.entanglement import Loss

_MOST = 10.0  # a side's gradient is made at most so many times as long, or short


class Balance(NamedTuple):
    """How the two sides of every pair weigh against each other, [B] each."""

    log_r: Tensor  # log of pull_w / pull_l
    log_wanted: Tensor  # log of r*
    cosine: Tensor
    in_band: Tensor  # whether r lies between the two bounds
    known: Tensor  # whether both logs are numbers: both pulls go the usual way, or both the other, and neither is 0


def calibrated(loss: Loss, policy: Scores, reference: Scores | None, *, per_pair: bool) -> Terms:
    """Terms of ``loss`` with the gradients of chosen log-probs times a, those of rejected ones divided by it.

    a = sqrt(r* / r), with ``per_pair`` that of the pair itself: its two sides get gradients of equal length, and the
    product of the lengths stays. Else it is made of the means of log r* and log r over past steps, and 1 in the first.
    It stays between 1/10 and 10, so that a pull next to nothing does not take the other side with it. A pair without a
    ratio, such as one that a hinge has let go, stays as it is.
    """
    import torch

    balance = _balance(loss, policy, reference)
    gap = balance.log_wanted - balance.log_r
    if not per_pair:
        means = policy.running
        past = means["log_wanted"] - means["log_r"] if means else gap.new_zeros(())
        gap = past.to(gap.dtype).nan_to_num(0.0).expand_as(gap)
    factor = torch.where(balance.known, gap, 0.0).div(2).exp().clamp(1 / _MOST, _MOST)
    terms = loss(_scaled(policy, factor), reference)
    count = balance.known.to(gap).sum()

    def mean(values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(balance.known, values, 0.0).sum(), count

    metrics = {
        "calibration/factor": mean(factor),
        "calibration/log_r": mean(balance.log_r),
        "calibration/log_wanted": mean(balance.log_wanted),
        "calibration/cosine": mean(balance.cosine),
        "calibration/in_band": mean(balance.in_band.to(gap)),
        "calibration/with_ratio": (count, gap.new_full((), float(gap.numel()))),
    }
    running = {"log_r": mean(balance.log_r), "log_wanted": mean(balance.log_wanted)}
    return replace(terms, metrics={**terms.metrics, **metrics}, running=running)


def _balance(loss: Loss, policy: Scores, reference: Scores | None) -> Balance:
    """What the loss pulls with, and what the gradients of both log-probs are like."""
    products = Products(*policy.tokens["head_gradients"].detach().unbind(1))
    pull_w, pull_l = (p.to(products.inner) for p in pulls_of(loss, policy, reference))
    log_r, log_wanted, cosine = (pull_w / pull_l).log(), -products.log_ratio, products.cosine
    low, high = products.band
    in_band = (low < pull_l / pull_w) & (pull_l / pull_w < high)
    return Balance(log_r, log_wanted, cosine, in_band, log_r.isfinite() & log_wanted.isfinite() & cosine.isfinite())


def _scaled(policy: Scores, factor: Tensor) -> Scores:
    """The same values; gradients of log-probs times ``factor`` [B] for chosen answers, divided by it for rejected."""
    logp = policy.tokens["logp"]
    factors = logp.new_ones(len(policy.lengths))
    for side, values in zip(SIDES, (factor, 1 / factor), strict=True):
        factors = factors.index_put((policy.sequences[side],), values.to(logp.dtype))
    still = logp.detach()
    moving = still + factors[policy.owner] * (logp - still)  # the difference is 0, so the value is the same to the bit
    tokens: Mapping[str, Tensor] = {**policy.tokens, "logp": moving}
    return replace(policy, tokens=tokens)
