"""Attention segment by segment with torch's scaled_dot_product_attention: everywhere right, and the CPU's kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from align.engine.layout import Layout, Segment


def segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One call per segment. Shapes and arguments as in ``align.engine.kernels.kernel.Run``."""
    groups = query.shape[1] // key.shape[1]
    # the CPU kernel shares key heads by itself; other devices' float32 kernels would hold the scores for it
    if groups > 1 and (query.device.type != "cpu" or softcap is not None):
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # one split, not a slice per segment: the gradient of a slice is a whole row of zeros, that of a split is one cat
    sizes = [s.q1 - s.q0 for s in layout.segments]
    queries, keys, values = query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2)
    number = {(s.q0, s.q1): i for i, s in enumerate(layout.segments)}
    outputs = []
    for s, q, k, v in zip(layout.segments, queries, keys, values, strict=True):
        if s.p1 > s.p0:
            i = number.get((s.p0, s.p1))
            prompt_k, prompt_v = (x[:, :, s.p0 : s.p1] for x in (key, value)) if i is None else (keys[i], values[i])
            k, v = torch.cat((prompt_k, k), 2), torch.cat((prompt_v, v), 2)
        mask = segment_mask(layout, s, window, query.device)
        if softcap is None:
            shared = k.shape[1] != q.shape[1]
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
            )
        else:
            out = softcapped(q, k, v, mask, scaling, softcap)
        outputs.append(out)
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def segment_mask(layout: Layout, segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
    """Boolean mask [q, p + q], bottom-right causal, or None where plain causal attention says the same."""
    queries, prefix = segment.q1 - segment.q0, segment.p1 - segment.p0
    keys = prefix + queries
    if window is not None and window >= keys:
        window = None
    if prefix == 0 and window is None:
        return None

    def make() -> Tensor:
        i = torch.arange(queries, device=device)[:, None] + prefix
        j = torch.arange(keys, device=device)[None]
        return j <= i if window is None else (j <= i) & (j > i - window)

    return layout.once(("mask", queries, prefix, window, device), make)


def softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float) -> Tensor:
    """Attention whose scores pass through softcap * tanh(score / softcap) (Gemma 2), which sdpa cannot do.

    ``mask`` None is plain causal attention.
    """
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(v.dtype) @ v
