"""Rows of a packed row laid out anew for a kernel: keys of a prompt once for each of its branches."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Gather(NamedTuple):
    """Which places a new row [K] takes from an old one [T], and where each old place went.

    ``taken`` [K] are old places. ``own`` [T] is the new place that stands for the old one itself. ``copies`` are old
    places [P] that were taken c more times, with those new places [P, c]; every old place is in one pair at most.
    New places that are in neither only fill up, and nothing may depend on them.
    """

    taken: Tensor
    own: Tensor
    copies: tuple[tuple[Tensor, Tensor], ...]

    def __call__(self, row: Tensor) -> Tensor:
        """``row`` [T, ...] to [K, ...]."""
        return _Gathered.apply(row, self)


def gather_plan(
    taken: np.ndarray, own: np.ndarray, copies: dict[tuple[int, int], list[int]], device: torch.device
) -> Gather:
    """A ``Gather`` from places in numbers; ``copies`` maps spans of old places, apart from each other, to the starts of
    their copies beside their own."""
    by_count: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for (first, last), starts in copies.items():
        if last > first:
            step = np.arange(last - first)
            by_count[len(starts)].append((first + step, np.array(starts)[None] + step[:, None]))
    pairs = tuple(
        tuple(on_device(np.concatenate(parts), device) for parts in zip(*spans, strict=True))
        for spans in by_count.values()
    )
    return Gather(on_device(taken, device), on_device(own, device), pairs)  # type: ignore[arg-type]


def on_device(numbers: np.ndarray, device: torch.device) -> Tensor:
    """The same numbers on ``device``, without waiting for it."""
    return torch.from_numpy(numbers).to(device, non_blocking=True)


class _Gathered(torch.autograd.Function):
    """The gradient of a place is the sum over its copies: taken, and not scattered onto duplicates.

    Scattering sorts the places, or adds up in no fixed order and in 16 bits.
    """

    @staticmethod
    def forward(ctx: Any, row: Tensor, plan: Gather) -> Tensor:
        ctx.plan = plan
        return row.index_select(0, plan.taken)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        plan: Gather = ctx.plan
        wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
        out = grad.index_select(0, plan.own)
        for places, new in plan.copies:
            others = grad.index_select(0, new.flatten()).view(*new.shape, *grad.shape[1:]).sum(1, dtype=wide)
            out.index_copy_(0, places, (out.index_select(0, places).to(wide) + others).to(out.dtype))
        return out, None
