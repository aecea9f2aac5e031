"""What the vocabulary head takes, by the tiles that the engine works in (``engine/head.py``, ``engine/logprob.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from align.engine.fused import Finish
from align.engine.head import HeadJob, ReferenceHead, block_rows, grad_logits
from align.engine.reads import LogProb, Read, evaluate
from align.engine.tiles import tile_shape
from align.plan.trace import Live


@dataclass(frozen=True)
class Head:
    """A head [V, H] and how it computes.

    Attributes:
        weight: bytes of one of its numbers, and ``trained`` whether they take gradients.
        hidden: bytes of one number of the hidden states that it is given.
        factor: bytes of one number of the factors of its products: those of autocast, but 4 on a CPU.
        area: logits in a tile; see ``tiles.tile_area``.
    """

    vocabulary: int
    width: int
    weight: int
    trained: bool
    hidden: int
    factor: int
    area: int


class Taken(NamedTuple):
    """Bytes: kept from forward to backward, the most while it runs forward, and backward, above what was there."""

    keeps: int
    forward: int
    backward: int


def logprobs(head: Head, tokens: int) -> Taken:
    """Log-probs of ``tokens`` targets in tiles of the vocabulary.

    Both passes hold a tile of float32 logits, the tile's rows of the weight in the factors' type, and the hidden states
    in it, where these are other types. Backward adds a tile of gradients in 16-bit factors, sums of the hidden states'
    gradient in float32, and the weight's gradient, of which rows in 16 bits are summed in float32 first.
    """
    rows, columns = tile_shape(tokens, head.vocabulary, head.area)
    states = tokens * head.width
    tile = 4 * rows * columns + head.factor * columns * head.width * (head.factor != head.weight)
    tile += head.factor * states * (head.factor != head.hidden)
    keeps = head.hidden * states + (8 + 4 + 4) * tokens  # targets, log-probs and their normalisers
    backward = tile + 4 * states + head.hidden * states * (head.hidden != 4)
    backward += head.factor * rows * columns * (head.factor != 4)
    if head.trained:
        backward += head.weight * head.vocabulary * head.width + 4 * columns * head.width * (head.weight != 4)
    return Taken(keeps, keeps + tile + 12 * tokens, backward)


def whole_rows(head: Head, tokens: int, reads: tuple[Read, ...], device: str) -> Taken:
    """Reads of whole rows of logits, some rows at a time; ``reads`` may compare them with a reference's.

    What the reads themselves hold of a block is seen by running them on shapes.
    """
    rows = min(tokens, block_rows(device, head.vocabulary))
    states, weight = tokens * head.width, head.vocabulary * head.width
    cast = head.factor * weight * (head.factor != head.weight)
    seen, block = _block(head, rows, reads)
    keeps = head.hidden * states + 8 * tokens
    backward = cast + block + head.hidden * states
    backward += 4 * rows * head.vocabulary * (tokens > rows)  # the last block's gradient is there as the next one comes
    if head.trained:
        backward += 4 * weight + head.weight * weight * (head.weight != 4)
        backward += 4 * weight * (head.factor != 4)  # a product of 16-bit factors is made before it is added
    return Taken(keeps, keeps + cast + seen, backward)


def _block(head: Head, rows: int, reads: tuple[Read, ...]) -> tuple[int, int]:
    """The most that one block of rows holds while it is read, and while its gradient is made."""
    types = {2: torch.bfloat16, 4: torch.float32}
    with FakeTensorMode():
        hidden = torch.empty(rows, head.width, dtype=types[head.hidden])
        weight = torch.empty(head.vocabulary, head.width, dtype=torch.float32)
        targets = torch.empty(rows, dtype=torch.long)
        compares = any(read.needs_reference for read in reads)
        reference = ReferenceHead(hidden, weight, None, Finish()) if compares else None
        job = HeadJob(targets, reads, Finish(), reference)
        upstream = torch.empty(len(reads), rows)
        with Live() as forward, torch.no_grad():
            logits = hidden.float() @ weight.t()
            other = None if reference is None else reference.logits(slice(0, rows), torch.float32)
            evaluate(reads, logits, targets, other)
        with Live() as backward:
            grad_logits(hidden, weight, None, job, slice(0, rows), upstream, torch.float32)
    return forward.peak, backward.peak


def taken(head: Head, tokens: int, reads: tuple[Read, ...], device: str) -> Taken:
    """What ``reads`` of so many targets take; without reads nothing."""
    if not reads:
        return Taken(0, 0, 0)
    return logprobs(head, tokens) if reads == (LogProb(),) else whole_rows(head, tokens, reads, device)
