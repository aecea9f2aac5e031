"""Functions of log-probs that stay exact and finite at both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def log1mexp(x: Tensor, nearest: float = -1e-10) -> Tensor:
    """log(1 - exp(x)) of negative ``x``, any shape: the log-prob that something of log-prob x does not happen.

    It would be infinite at 0, so an ``x`` above ``nearest`` counts as ``nearest``, and takes no gradient.
    """
    import torch

    x = x.clamp(max=nearest)
    near = x > -0.693  # each side has the form that loses no digits there; the other is given a harmless number
    low, high = torch.where(near, -1.0, x), torch.where(near, x, -0.5)
    return torch.where(near, (-torch.expm1(high)).log(), torch.log1p(-low.exp()))
