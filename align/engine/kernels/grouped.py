"""Segments of like length together in one call each: for devices where calls are dear and new shapes dearer."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from align.engine.kernels.gather import Gather, gather_plan, on_device
from align.engine.kernels.segments import softcapped
from align.engine.layout import Layout

# cuDNN is not among them: it makes a plan for every new shape, which takes seconds
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_STEP = 64  # lengths are rounded up to multiples of it, so that the shapes of a run repeat
_MOST_SCORES = 2**26  # of a call and a head: the mask has a byte or four for each


class Plan(NamedTuple):
    """``queries`` and ``keys`` lay all groups one behind the other; ``groups`` are their numbers of segments, queries
    and keys; ``masks`` [B, 1, Q, K] say what is seen, None for plain causal attention; ``back`` [T] is where the output
    of each place lies."""

    queries: Gather
    keys: Gather
    groups: tuple[tuple[int, int, int], ...]
    masks: tuple[Tensor | None, ...]
    back: Tensor


def grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """A call for each group of segments. Shapes and arguments as in ``align.engine.kernels.kernel.Run``."""
    plan: Plan = layout.once(("grouped", window, query.device), lambda: make_plan(layout, window, query.device))
    heads = query.shape[1] // key.shape[1]
    q = plan.queries(query[0].transpose(0, 1))
    k, v = (plan.keys(x[0].transpose(0, 1)) for x in (key, value))
    parts_q = q.split([b * n for b, n, _ in plan.groups])
    parts_k, parts_v = (x.split([b * n for b, _, n in plan.groups]) for x in (k, v))
    outputs = []
    for (batch, _, _), mask, *parts in zip(plan.groups, plan.masks, parts_q, parts_k, parts_v, strict=True):
        mine, theirs, values = (x.view(batch, -1, *x.shape[1:]).transpose(1, 2) for x in parts)
        # the kernels with a mask share no key heads
        theirs, values = (x.repeat_interleave(heads, 1) if heads > 1 else x for x in (theirs, values))
        if softcap is not None:
            out = softcapped(mine, theirs, values, mask, scaling, softcap)
        else:
            with sdpa_kernel(_BACKENDS):
                out = scaled_dot_product_attention(
                    mine, theirs, values, attn_mask=mask, is_causal=mask is None, scale=scaling
                )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.back).unsqueeze(0)


def make_plan(layout: Layout, window: int | None, device: torch.device) -> Plan:
    """Groups of segments whose rounded lengths of queries and keys are equal, in pieces of ``_MOST_SCORES``."""
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, s in enumerate(layout.segments):
        by_size[_up(s.q1 - s.q0), _up(s.q1 - s.q0 + s.p1 - s.p0)].append(number)
    queries, keys, masks, groups = [], [], [], []
    own_q, own_k = np.empty(layout.length, np.int64), np.empty(layout.length, np.int64)
    copies: dict[tuple[int, int], list[int]] = {}
    start_q = start_k = 0
    for (size_q, size_k), members in sorted(by_size.items()):
        most = max(1, _MOST_SCORES // (size_q * size_k))
        for some in (members[i : i + most] for i in range(0, len(members), most)):
            groups.append((len(some), size_q, size_k))
            shapes = []
            for s in (layout.segments[number] for number in some):
                mine, prompt = s.q1 - s.q0, s.p1 - s.p0
                # what fills up repeats the first place
                queries.append(np.r_[np.arange(s.q0, s.q1), np.full(size_q - mine, s.q0)])
                filled = size_k - prompt - mine
                keys.append(np.r_[np.arange(s.p0, s.p1), np.arange(s.q0, s.q1), np.full(filled, s.q0)])
                own_q[s.q0 : s.q1] = np.arange(start_q, start_q + mine)
                own_k[s.q0 : s.q1] = np.arange(start_k + prompt, start_k + prompt + mine)
                copies.setdefault((s.p0, s.p1), []).append(start_k)
                shapes.append((prompt, mine))
                start_q, start_k = start_q + size_q, start_k + size_k
            masks.append(_mask(shapes, size_q, size_k, window, device))
    taken = gather_plan(np.concatenate(queries), own_q, {}, device)
    return Plan(taken, gather_plan(np.concatenate(keys), own_k, copies, device), tuple(groups), tuple(masks), taken.own)


def _up(length: int) -> int:
    return -(-length // _STEP) * _STEP


def _mask(
    shapes: list[tuple[int, int]], size_q: int, size_k: int, window: int | None, device: torch.device
) -> Tensor | None:
    """Boolean [B, 1, Q, K], causal behind each segment's prompt; a query that only fills up sees the first key."""
    if window is None and not any(prompt for prompt, _ in shapes):
        return None  # what fills up stands behind, where causal attention does not look
    prefix = on_device(np.array([p for p, _ in shapes]), device)[:, None, None]
    i = torch.arange(size_q, device=device)[None, :, None] + prefix
    j = torch.arange(size_k, device=device)[None, None]
    length = prefix + on_device(np.array([q for _, q in shapes]), device)[:, None, None]
    seen = (j <= i) & (j < length) if window is None else (j <= i) & (j < length) & (j > i - window)
    return torch.where(i < length, seen, j == 0)[:, None]
