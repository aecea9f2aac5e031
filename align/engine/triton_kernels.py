"""The two passes of ``fused.py`` over a tile of float32 logits as Triton kernels. Imported only where Triton is.

Triton reads the annotations of a kernel itself, so nothing but its constants is annotated.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # logits that a program holds at a time, sixteen for each of its threads
# fused multiply-add is said aloud, because Triton's default changes with 3.10
_LAUNCH = {"BLOCK": _BLOCK, "num_warps": 8, "enable_fp_fusion": True}


def absorb(
    logits: Tensor,
    first: int,
    targets: Tensor,
    scale: float,
    cap: float | None,
    largest: Tensor,
    total: Tensor,
    chosen: Tensor,
) -> None:
    """See ``fused.absorb``. ``logits`` [n, v] float32 is only read; everything must be contiguous."""
    tokens, words = logits.shape
    if tokens:
        with torch.cuda.device_of(logits):
            _absorb[(tokens,)](
                *(logits, targets, largest, total, chosen, first, words, scale, 1.0 if cap is None else cap),
                CAPPED=cap is not None,
                **_LAUNCH,
            )


def differentiate(
    logits: Tensor,
    first: int,
    targets: Tensor,
    scale: float,
    cap: float | None,
    normaliser: Tensor,
    upstream: Tensor,
    out: Tensor,
) -> None:
    """See ``fused.differentiate``. ``out`` [n, v] has any float type; everything must be contiguous."""
    tokens, words = logits.shape
    if tokens:
        with torch.cuda.device_of(logits):
            _differentiate[(tokens, triton.cdiv(words, _BLOCK))](
                *(logits, targets, normaliser, upstream, out, first, words, scale, 1.0 if cap is None else cap),
                CAPPED=cap is not None,
                **_LAUNCH,
            )


@triton.jit
def _tanh(x):
    """tanh without the device's own library, which not every version offers under one name."""
    square = x * x
    high = -17 / 315 + square * (62 / 2835 + square * (-1382 / 155925 + square * (21844 / 6081075)))
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * high)))
    small = tl.exp(-2 * tl.abs(x))
    ratio = (1 - small) / (1 + small)
    # near 0 the ratio would lose digits, and there seven terms of the series are exact to float32
    return tl.where(square < 0.2, series, tl.where(x < 0, -ratio, ratio))


@triton.jit
def _finish(x, scale, cap, CAPPED: tl.constexpr):
    x = x * scale
    if CAPPED:
        x = cap * _tanh(x / cap)
    return x


@triton.jit
def _absorb(
    logits, targets, largest, total, chosen, first, words, scale, cap, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):
    """One program for each token: a running maximum and a sum of exponentials over the tile's words."""
    token = tl.program_id(0).to(tl.int64)
    start = logits + token * words
    top = tl.load(largest + token)
    summed = tl.load(total + token)
    for begin in range(0, words, BLOCK):
        word = begin + tl.arange(0, BLOCK)
        inside = word < words
        x = _finish(tl.load(start + word, mask=inside, other=0.0), scale, cap, CAPPED)
        x = tl.where(inside, x, float("-inf"))
        new_top = tl.maximum(top, tl.max(x, 0))
        summed = summed * tl.exp(top - new_top) + tl.sum(tl.exp(x - new_top), 0)
        top = new_top
    tl.store(largest + token, top)
    tl.store(total + token, summed)
    place = tl.load(targets + token) - first
    here = (place >= 0) & (place < words)
    own = _finish(tl.load(start + place, mask=here, other=0.0), scale, cap, CAPPED)
    tl.store(chosen + token, own, mask=here)


@triton.jit
def _differentiate(
    logits, targets, normaliser, upstream, out, first, words, scale, cap, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):
    """One program for each token and block of words; each logit is read once and its gradient written once."""
    token = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = word < words
    x = _finish(tl.load(logits + token * words + word, mask=inside, other=0.0), scale, cap, CAPPED)
    slope = tl.load(upstream + token) * scale
    if CAPPED:
        slope = slope * (1 - (x / cap) * (x / cap))
    hit = tl.where(word == tl.load(targets + token) - first, 1.0, 0.0)
    gradient = (hit - tl.exp(x - tl.load(normaliser + token))) * slope
    tl.store(out + token * words + word, gradient.to(out.dtype.element_ty), mask=inside)
