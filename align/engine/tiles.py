"""Tiles of the vocabulary head: how large they are, and the matrix products that make and use them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Logits in a tile on a CPU: 1 MiB of float32, so that they stay in a core's cache between products and passes.
_AREA_CPU = 2**18
# Other accelerators than CUDA do not say what they are made of.
_AREA_OTHER = 2**27
# Words in a tile come in multiples of this where there are as many, so that its rows start where a GPU reads fast.
_WORDS = 256


def tile_area(device: torch.device) -> int:
    """How many logits are held at once on ``device``.

    A matrix product on a GPU hands out blocks of about 128 x 256 results, one to each multiprocessor at a time; in the
    last such wave most of them may wait. Of 32 waves that is 1.5 % of the time on average, and more waves gain nothing.
    One tile of that size is some 50 times the L2 cache: it is read from memory in any case, which the fused passes do
    once each, so the cache has no say. At most 1/64 of the memory is taken: float32 logits, then half as much again for
    their gradient in 16 bits.
    """
    if device.type == "cpu":
        return _AREA_CPU
    if device.type != "cuda":
        return _AREA_OTHER
    chip = torch.cuda.get_device_properties(device)
    return area_of(chip.multi_processor_count, chip.total_memory)


def area_of(multiprocessors: int, memory: int) -> int:
    """Logits in a tile on a GPU with so many multiprocessors and so many bytes."""
    return min(32 * multiprocessors * 128 * 256, memory // 64 // 4)


def tile_shape(tokens: int, vocabulary: int, area: int) -> tuple[int, int]:
    """Tokens and words of a tile of about ``area`` logits.

    With V / v tiles of words, the gradient of the hidden states is summed V / v times; with N / n blocks of tokens,
    that of the weight N / n times, but of one block it is written without a sum. So all tokens stand in one block while
    they are at most twice the side of a square tile, where one block and several cost the same; more are dealt evenly.
    """
    blocks = max(1, math.ceil(tokens / (2 * math.sqrt(area))))
    rows = max(1, math.ceil(tokens / blocks))
    pieces = math.ceil(vocabulary / max(1, area // rows))
    columns = math.ceil(vocabulary / pieces)
    return rows, columns if columns < _WORDS else math.ceil(columns / _WORDS) * _WORDS


def slices(length: int, step: int) -> list[slice]:
    """``length`` things in steps; of nothing one empty slice, so that what is summed over it is zero."""
    return [slice(i, min(i + step, length)) for i in range(0, max(length, 1), step)]


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``a @ b``, summed and returned in float32 (float64 stays): 16-bit logits would be off by up to 0.06 nats."""
    if a.dtype.itemsize > 2:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=torch.float32, out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor, *, fresh: bool) -> None:
    """``total += a @ b``, or ``total = a @ b`` where it is ``fresh``; a sum of products is never rounded to 16 bits."""
    if fresh:
        product(a, b, out=total)
    elif a.dtype.itemsize > 2:
        total.addmm_(a, b)
    else:  # torch.addmm takes a float32 sum beside 16-bit factors only from some version on
        total += product(a, b)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """What the head's factors are given in. Only CUDA multiplies 16-bit factors into float32; others get them wide."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return dtype if dtype.itemsize > 2 or device == "cuda" else torch.float32


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of logits, sums and results: float32, or float64 where the factors have that."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def no_autocast(hidden: Tensor) -> torch.autocast:
    return torch.autocast(hidden.device.type, enabled=False)
