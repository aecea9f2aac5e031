"""Gumbel noise that is a pure function of its address: no generator, no state, no dependence on the rest of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

# of splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014)
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 52  # of each hash that are used: half a step away from 0 and from 1 is then exact in float64


def gumbel(seed: int, step: int, keys: Tensor, samples: Tensor, position: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise for the next token of R sequences: the likeliest of ``logits + noise`` is a draw.

    Token t has the t-th number of a splitmix64 stream that starts at a hash of everything else, so a token's noise is
    the same whatever the other rows are and however many tokens there are.

    Args:
        seed, step: any integers; only their lowest 64 bits count.
        keys: int64 [R], one of each prompt.
        samples: int64 [R], which of its prompt's samples a sequence is.
        position: of the token in the completion, from 0.
        vocabulary: number V of tokens.

    Returns:
        float32 [R, V] on the device of ``keys``, all finite: between -3.7 and 36.8.
    """
    state = torch.full_like(keys, signed(_STEP))
    for part in (signed(seed), signed(step), keys, samples, position):
        state = _mix(state ^ part) + signed(_STEP)
    tokens = torch.arange(1, vocabulary + 1, device=keys.device)
    return _of_hashes(_mix(state[:, None] + tokens * signed(_STEP)))


def signed(value: int) -> int:
    """The int64 with the lowest 64 bits of an integer."""
    return (value + 2**63) % 2**64 - 2**63


def _of_hashes(hashes: Tensor) -> Tensor:
    """Gumbel noise, float32, from any int64.

    In float64 between: in float32 the largest draws, which win, would be coarse, and the last bit of a logarithm can
    change with an element's place in a tensor.
    """
    uniform = (_shifted(hashes, 64 - _BITS).double() + 0.5) * 2.0**-_BITS
    return uniform.log_().neg_().log_().neg_().float()


def _mix(x: Tensor) -> Tensor:
    """splitmix64's bijection of 64 bits; products wrap around."""
    x = (x ^ _shifted(x, 30)) * signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * signed(_SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Right shift with zeros moving in, which a signed one alone does not do."""
    return (x >> by) & ((1 << (64 - by)) - 1)
