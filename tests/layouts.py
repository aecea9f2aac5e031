"""Layouts of packed rows, and what attention over them must be."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from align.engine.layout import Layout, Segment

LAYOUT = Layout([Segment(0, 4), Segment(4, 7, 0, 4), Segment(7, 12, 0, 4), Segment(12, 15)])


def random_layout(source: random.Random, length: int) -> Layout:
    """Prompts with one to four branches, some of them alone or of one token, up to about ``length`` places."""
    found: list[Segment] = []
    while not found or found[-1].q1 < length:
        start = found[-1].q1 if found else 0
        end = start + source.choice([1, 5, 40, 130, 260])
        found.append(Segment(start, end))
        for _ in range(source.choice([0, 1, 2, 4])):
            found.append(Segment(found[-1].q1, found[-1].q1 + source.choice([1, 3, 30, 129]), start, end))
    return Layout(found)


def seen(layout: Layout, window: int | None) -> Tensor:
    """The dense mask [T, T] that a layout means, written down place by place."""
    allowed = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for s in layout.segments:
        keys = [*range(s.p0, s.p1), *range(s.q0, s.q1)]
        for query in range(s.q0, s.q1):
            before = keys[: s.p1 - s.p0 + query - s.q0 + 1]
            allowed[query, before if window is None else before[-window:]] = True
    return allowed


def dense(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, window: int | None, scaling: float, softcap: float | None
) -> Tensor:
    """Attention [1, T, H, D] with the whole mask."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~seen(layout, window), float("-inf")).softmax(-1) @ v).transpose(1, 2)


def documented(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    num_splits: int | None = 1,
) -> Any:
    """torch's variable-length attention as its documentation has it, on the CPU."""
    left, right = window_size
    groups = q.shape[1] // k.shape[1]
    assert enable_gqa == (groups > 1)
    assert right == 0
    assert num_splits == 1
    assert len(q) == cu_q[-1]
    assert len(k) == len(v) == cu_k[-1]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    out = []
    for q0, q1, k0, k1 in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        queries = q[q0:q1].transpose(0, 1)
        keys, values = (x[k0:k1].repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
        i = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        j = torch.arange(k1 - k0)[None]
        seen = (j <= i) & ((j >= i - left) if left >= 0 else True)
        scores = (queries @ keys.transpose(-1, -2) * factor).masked_fill(~seen, float("-inf"))
        out.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(out)
