"""One call of torch's flex_attention, whose mask is the layout: for float32, soft caps and old kernels on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from align.engine.kernels.gather import on_device
from align.engine.layout import Layout

BLOCK = 128  # queries and keys of a block; flex_attention's own


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One call for the row. Shapes and arguments as in ``align.engine.kernels.kernel.Run``."""
    blocks: BlockMask = layout.once(("flex", window, query.device), lambda: block_mask(layout, window, query.device))
    out = _compiled()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _cap(softcap, query.device),
        block_mask=blocks,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous()


@functools.cache
def _compiled() -> Callable[..., Any]:
    # lengths differ from row to row: one kernel must do for all of them
    return torch.compile(flex_attention, dynamic=True)


@functools.cache
def _cap(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    # a tensor: with dynamic shapes torch makes an unknown out of a number, which flex_attention cannot compile
    cap = torch.full((), softcap, device=device)

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """The layout as flex_attention wants it; no T x T mask is made on the way."""
    first_prompt, last_prompt, first_own = _bounds(layout, window)
    seen, whole = _blocks(layout, first_prompt, first_own)
    count = len(seen)
    # the kernel reads whole blocks: places behind the end see nothing
    room = [(0, count * BLOCK - layout.length)]
    prompt_from, prompt_to, own_from = (
        on_device(np.pad(x, room).astype(np.int32), device) for x in (first_prompt, last_prompt, first_own)
    )

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        prompt = (key >= prompt_from[query]) & (key < prompt_to[query])
        return prompt | ((key >= own_from[query]) & (key <= query))

    return BlockMask.from_kv_blocks(
        *_listed(seen & ~whole, device),
        *_listed(whole, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(layout.length, layout.length),
    )


def _bounds(layout: Layout, window: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every query [T]: the first key of its prompt that it sees, that prompt's end, the first key of its own."""
    parts = []
    for s in layout.segments:
        place = np.arange(s.q0, s.q1)
        own, prompt = np.full(len(place), s.q0), np.full(len(place), s.p0)
        if window is not None:
            own = np.maximum(own, place - window + 1)
            # counted from the prompt's start, a query stands at p1 - p0 + place - q0
            prompt = np.maximum(prompt, s.p1 + place - s.q0 - window + 1)
        parts.append((np.minimum(prompt, s.p1), np.full(len(place), s.p1), own))
    prompt_from, prompt_to, own_from = (np.concatenate(x) for x in zip(*parts, strict=True))
    return prompt_from, prompt_to, own_from


def _blocks(layout: Layout, prompt_from: np.ndarray, own_from: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks of keys each block of queries sees, in part or wholly: booleans [blocks, blocks]."""
    count = -(-layout.length // BLOCK)
    seen, wholly = np.zeros((count, count), bool), np.zeros((count, count), int)  # wholly: by so many of its queries
    for s in layout.segments:
        for block in range(s.q0 // BLOCK, (s.q1 - 1) // BLOCK + 1):
            first, last = max(s.q0, block * BLOCK), min(s.q1, (block + 1) * BLOCK) - 1
            if prompt_from[first] < s.p1:
                seen[block, prompt_from[first] // BLOCK : (s.p1 - 1) // BLOCK + 1] = True
            seen[block, own_from[first] // BLOCK : last // BLOCK + 1] = True
            # lower bounds rise within a segment, so that the last query begins to see last
            wholly[block, -(-prompt_from[last] // BLOCK) : s.p1 // BLOCK] += last - first + 1
            wholly[block, -(-own_from[last] // BLOCK) : (first + 1) // BLOCK] += last - first + 1
    return seen, wholly == BLOCK


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers of true blocks per row and their places first, int32 [1, 1, rows] and [1, 1, rows, columns]."""
    order = np.argsort(~blocks, axis=1, kind="stable")
    return (
        on_device(blocks.sum(1).astype(np.int32), device)[None, None],
        on_device(order.astype(np.int32), device)[None, None],
    )
