"""All segments in one call of torch's variable-length FlashAttention."""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from align.engine.kernels.gather import Gather, gather_plan, on_device
from align.engine.kernels.kernel import UnsupportedAttention
from align.engine.layout import Layout


class Plan(NamedTuple):
    """Inputs of a variable-length kernel: key gather, cumulative lengths of queries and keys (int32), and maxima."""

    keys: Gather
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One call for the row. Shapes and arguments as in ``align.engine.kernels.kernel.Run``.

    Raises:
        UnsupportedAttention: for what this torch's kernel cannot do. Versions differ, so its arguments are looked at.
    """
    if softcap is not None:
        raise UnsupportedAttention("torch's varlen_attn knows no soft cap")
    known = _arguments()
    plan: Plan = layout.once(("varlen", query.device), lambda: make_plan(layout, query.device))
    options: dict[str, Any] = {}
    if "window_size" in known:
        # a window counts the keys before the query; sliding_window W in transformers means W keys, its own included
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        options["is_causal"] = True
    else:
        raise UnsupportedAttention("this torch's varlen_attn knows no window")
    if "scale" in known:
        options["scale"] = scaling
    elif scaling is not None and abs(factor := scaling * query.shape[-1] ** 0.5 - 1) > 1e-6:
        query = query * (1 + factor)
    if "enable_gqa" in known:  # without the argument key heads are shared by themselves
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    if "num_splits" in known:
        options["num_splits"] = 1  # a sequence must not see its neighbours through the order of a reduction
    q = query[0].transpose(0, 1)
    k, v = (plan.keys(x[0].transpose(0, 1)) for x in (key, value))
    out = torch_varlen.varlen_attn(q, k, v, plan.cu_q, plan.cu_k, plan.max_q, plan.max_k, **options)
    return out.unsqueeze(0)  # type: ignore[union-attr]  # a tuple only with return_aux


@functools.cache
def _arguments() -> frozenset[str]:
    return frozenset(inspect.signature(torch_varlen.varlen_attn).parameters)


def fixes_splits() -> bool:
    """Whether torch can be told not to split the keys of a sequence, which hangs on what lies beside it."""
    return "num_splits" in _arguments()


def make_plan(layout: Layout, device: torch.device) -> Plan:
    """The keys of a segment are its prompt's and then its own, behind one another."""
    index, own, copies = [], np.empty(layout.length, np.int64), dict[tuple[int, int], list[int]]()
    start = 0
    for s in layout.segments:
        prompt, queries = np.arange(s.p0, s.p1), np.arange(s.q0, s.q1)
        index += [prompt, queries]
        copies.setdefault((s.p0, s.p1), []).append(start)
        start += len(prompt)
        own[s.q0 : s.q1] = np.arange(start, start + len(queries))
        start += len(queries)
    queries = np.array([s.q1 - s.q0 for s in layout.segments])
    keys = queries + np.array([s.p1 - s.p0 for s in layout.segments])
    return Plan(
        gather_plan(np.concatenate(index), own, copies, device),
        on_device(np.r_[0, queries.cumsum()].astype(np.int32), device),
        on_device(np.r_[0, keys.cumsum()].astype(np.int32), device),
        int(queries.max()),
        int(keys.max()),
    )
