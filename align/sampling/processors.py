"""What ``generate`` is given to draw with: warpers of the logits, noise on them, and texts that end a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from align.recipe.sampling import Sampling
from align.sampling.noise import gumbel


class Noise(LogitsProcessor):
    """Adds noise to scores [R, V]; ``draws`` are seed and step, ``width`` the columns before the first new token."""

    def __init__(self, draws: tuple[int, int], keys: Tensor, samples: Tensor, width: int) -> None:
        self.draws, self.keys, self.samples, self.width = draws, keys, samples, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + gumbel(*self.draws, self.keys, self.samples, input_ids.shape[1] - self.width, scores.shape[1])


class Stops(StoppingCriteria):
    """Ends rows whose text has a stop text in it; the last tokens are looked at first.

    Args:
        stop: the texts.
        has: whether the text of some tokens has one of them in it.
        width: columns before the first new token.
    """

    def __init__(self, stop: Sequence[str], has: Callable[[Sequence[int]], bool], width: int) -> None:
        self.has, self.width = has, width
        self.tail = max(len(text.encode()) for text in stop) + 4  # most tokens have a byte at least

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        rows = input_ids[:, self.width :].tolist()
        ended = [self.has(row[-self.tail :]) and self.has(row) for row in rows]
        return torch.tensor(ended, device=input_ids.device)


class Seen(StoppingCriteria):
    """Ends nothing; ``tell`` is given the tokens behind ``width`` of the first row after each of them."""

    def __init__(self, tell: Callable[[list[int]], Any], width: int) -> None:
        self.tell, self.width = tell, width

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.tell(input_ids[0, self.width :].tolist())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def warpers(settings: Sampling) -> list[LogitsProcessor]:
    """transformers' own, in its own order; those that would change nothing are left out."""
    found: list[LogitsProcessor] = []
    if settings.temperature != 1:
        found.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k is not None:
        found.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        found.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p is not None:
        found.append(MinPLogitsWarper(settings.min_p))
    return found
