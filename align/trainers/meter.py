"""Metrics as sums and counts, reduced over ranks with one collective when somebody looks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


class Meter:
    """Adds up (sum, count) pairs on the device in float64; ``read`` reduces, divides and starts again.

    All ranks add the same keys, since all of them run the same objective on every micro-batch, dummies included.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add pairs of 0-dimensional tensors."""
        for key, (total, count) in pairs.items():
            pair = torch.stack((total.detach(), count.detach().to(total.device))).double()
            self._sums[key] = self._sums[key] + pair if key in self._sums else pair

    def __bool__(self) -> bool:
        return bool(self._sums)

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means by key; ``reduce`` sums a tensor over ranks. Keys that counted nothing are left out."""
        if not self._sums:
            return {}
        keys = sorted(self._sums)
        table = reduce(torch.stack([self._sums[k] for k in keys])).tolist()
        self._sums = {}
        return {key: total / count for key, (total, count) in zip(keys, table, strict=True) if count}

    def state(self) -> dict[str, list[float]]:
        """Sum and count of this rank by key, as plain JSON; nothing is rounded."""
        return {key: pair.tolist() for key, pair in self._sums.items()}

    def restore(self, states: Sequence[Mapping[str, list[float]]], rank: int, world: int, device: torch.device) -> None:
        """Take up the states of a checkpoint: each rank its own, or the first all where there were more or fewer."""
        mine = states[rank] if len(states) == world else _total(states, first=rank == 0)
        self._sums = {key: torch.tensor(pair, dtype=torch.float64, device=device) for key, pair in mine.items()}


def _total(states: Sequence[Mapping[str, list[float]]], *, first: bool) -> dict[str, list[float]]:
    """Sums over ranks, all for the first one now; the others have the same keys, with nothing in them."""
    return {
        key: [math.fsum(state[key][place] for state in states) if first else 0.0 for place in (0, 1)]
        for key in states[0]
    }
