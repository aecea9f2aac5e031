"""Attention over a packed row of trees, through transformers' public AttentionInterface.

A model is switched to ``align|<its own implementation>``. A call that carries a ``layout`` is computed by one of our
kernels, without a T x T mask; a call without one goes to the implementation that the model was loaded with, so that
generation and ordinary evaluation are untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from align.engine.kernels.kernel import Run, UnsupportedAttention
from align.engine.kernels.segments import segments
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


def use_tree_attention(model: PreTrainedModel) -> None:
    """Switch ``model`` to tree attention, keeping its own implementation for calls without a layout."""
    own = model.config._attn_implementation
    if own.startswith(PREFIX):
        return
    if "flash" in own:
        own = "sdpa"  # transformers' flash attention looks its name up in the configuration, which is ours from now on
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
    kernel: Run = segments,
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
        ValueError: where the row is not as long as the layout; kernels would read on behind its end.
    """
    unknown = [k for k, v in kwargs.items() if v is not None and k not in _HARMLESS]
    if unknown:
        raise UnsupportedAttention(f"tree attention does not implement: {', '.join(sorted(unknown))}")
    if dropout:
        raise UnsupportedAttention("tree attention does not implement attention dropout; set attention_dropout to 0")
    if query.shape[0] != 1:
        raise UnsupportedAttention(f"tree attention takes one packed row, not a batch of {query.shape[0]}")
    if not query.shape[2] == key.shape[2] == layout.length:
        raise ValueError(f"the row has {query.shape[2]} queries and {key.shape[2]} keys; its layout {layout.length}")
    query, key, value = (_as_autocast(x) for x in (query, key, value))
    return kernel(query, key, value, layout, scaling=scaling, window=sliding_window, softcap=softcap), None


def _as_autocast(x: Tensor) -> Tensor:
    """In the type that autocast computes attention in. Rotary embeddings leave float32 behind, and kernels differ."""
    device = x.device.type  # meta, for instance, knows no autocast
    known = torch.amp.is_autocast_available(device)
    if not known or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))
