"""Attention over a packed row of trees, through transformers' public AttentionInterface.

A model is switched to ``align|<its own implementation>``. A call that carries a ``layout`` is computed here, segment by
segment, without a T x T mask; a call without one goes to the implementation that the model was loaded with, so that
generation and ordinary evaluation are untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from align.engine.layout import Layout

PREFIX = "align|"

# Arguments that layers pass and that mean nothing here: bookkeeping, or facts that the layout already states.
_HARMLESS = {
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "is_causal",
    "past_key_values",
    "position_embeddings",
    "num_items_in_batch",
    "return_dict",
    "logits_to_keep",
}


class UnsupportedAttention(NotImplementedError):
    """The model's attention uses something that tree attention does not implement; the engine falls back on it."""


def use_tree_attention(model: PreTrainedModel) -> None:
    """Switch ``model`` to tree attention, keeping its own implementation for calls without a layout."""
    own = model.config._attn_implementation
    if own.startswith(PREFIX):
        return
    name = PREFIX + own
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _dispatcher(own))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    model.set_attn_implementation(name)


def _dispatcher(own: str) -> Callable:
    def attention(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        layout = kwargs.pop("layout", None)
        if layout is not None:
            return tree_attention(module, query, key, value, layout=layout, **kwargs)
        # eager attention is no registry entry: every modeling file has its own
        default = sys.modules[type(module).__module__].__dict__.get("eager_attention_forward")
        return ALL_ATTENTION_FUNCTIONS.get_interface(own, default)(module, query, key, value, attention_mask, **kwargs)

    return attention


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row. ``query`` [1, H, T, D], ``key`` and ``value`` [1, G, T, D]; returns [1, T, H, D].

    Raises:
        UnsupportedAttention: for any argument that is not implemented (sinks, biases, dropout, vision inputs), rather
            than computing something else.
    """
    unknown = [k for k, v in kwargs.items() if v is not None and k not in _HARMLESS]
    if unknown:
        raise UnsupportedAttention(f"tree attention does not implement: {', '.join(sorted(unknown))}")
    if dropout:
        raise UnsupportedAttention("tree attention does not implement attention dropout; set attention_dropout to 0")
    if query.shape[0] != 1:
        raise UnsupportedAttention(f"tree attention takes one packed row, not a batch of {query.shape[0]}")
    if query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16) and softcap is None:
        return _varlen(query, key, value, layout, scaling, sliding_window), None
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
        mask = layout.mask(s, sliding_window, query.device)
        if softcap is None:
            shared = k.shape[1] != q.shape[1]
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
            )
        else:
            out = _softcapped(q, k, v, mask, scaling, softcap)
        outputs.append(out)
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float) -> Tensor:
    """Attention whose scores pass through softcap * tanh(score / softcap) (Gemma 2), which sdpa cannot do."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """All segments in one call of torch's variable-length kernel; the keys of a prompt are gathered for each branch."""
    from torch.nn.attention.varlen import varlen_attn

    index, cu_q, cu_k, max_q, max_k = layout.varlen(query.device)
    q = query[0].transpose(0, 1)
    k = key[0].transpose(0, 1)[index]
    v = value[0].transpose(0, 1)[index]
    # a window counts the keys before the query; sliding_window W in transformers means W keys, the query's own included
    left = -1 if window is None else window - 1
    out = varlen_attn(
        q,
        k,
        v,
        cu_q,
        cu_k,
        max_q,
        max_k,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
        num_splits=1,  # a sequence must not see its neighbours through the order of a reduction
    )
    return out.unsqueeze(0)  # type: ignore[union-attr]  # a tuple only with return_aux
