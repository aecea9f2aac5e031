"""Steps too small for the type that weights are stored in: they round to nothing, and training looks as if it ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)
_SAMPLED = 4096  # weights that are looked at of each tensor
_WORTH_SAYING = 0.1


def rounding_warning(groups: Iterable[Mapping[str, Any]]) -> str | None:
    """The sentence about trained 16-bit weights that a step of the learning rate leaves as they are, or None.

    Adam moves a weight by about the learning rate at a step, other optimizers mostly by less.

    Args:
        groups: the optimizer's, with the highest learning rate as ``initial_lr`` where a schedule changes it.
    """
    lost, total, rate, kinds = 0.0, 0, 0.0, set()
    for group in groups:
        rate = max(rate, float(group.get("initial_lr", group["lr"])))
        for weight in group["params"]:
            total += weight.numel()
            if weight.dtype in NARROW and weight.numel():
                kinds.add(str(weight.dtype).removeprefix("torch."))
                lost += weight.numel() * lost_share(weight, rate)
    if not total or lost / total < _WORTH_SAYING:
        return None
    return (
        f"WARNING: {lost / total:.0%} of the trained weights are not changed by a step of the learning rate {rate:g}: "
        f"they are stored in {' and '.join(sorted(kinds))}, whose neighbouring numbers are further apart. Small "
        "updates are lost. Store the weights in float32 (model.dtype: float32) and compute in bfloat16 (train.bf16: "
        "true)."
    )


def lost_share(weight: Tensor, step: float) -> float:
    """Share of a tensor's numbers that neither adding nor taking away ``step`` changes, in the tensor's own type."""
    local = weight.detach()
    local = (local.to_local() if hasattr(local, "to_local") else local).flatten()
    if not local.numel():
        return 0.0  # this process holds no part of it
    some = local[:: max(1, local.numel() // _SAMPLED)]
    wide = some.float()
    stays = ((wide + step).to(some.dtype) == some) & ((wide - step).to(some.dtype) == some)
    return stays.float().mean().item()
