"""Decoder layers through torch.compile: what lies between the matrix products becomes a few kernels.

Each layer is compiled in place and for any shape, since packed rows differ in length at every batch. Attention over a
packed row stays as it is: it has kernels of its own, and a layout that is another object each time.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from align.engine.scoring import attach
from align.errors import UserError


def compile_layers(model: nn.Module, *, backend: str | None = None, mode: str | None = None) -> int:
    """Compile the decoder layers of ``model`` for scoring, and return how many there are.

    Calls without a scoring job, such as those of ``generate``, run as before: their shapes change with every token.

    Args:
        backend: of torch.compile; inductor unless given.
        mode: of torch.compile; its default unless given.

    Raises:
        UserError: where the architecture does not say which modules its layers are.
    """
    inner: Any = attach(model)
    kinds = set(getattr(inner, "_no_split_modules", None) or ())
    layers = [module for module in inner.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(
            f"train.torch_compile: {type(inner).__name__} does not say which of its modules are layers. Leave it out."
        )
    name = inner.config._attn_implementation
    AttentionInterface.register(name, torch.compiler.disable(ALL_ATTENTION_FUNCTIONS[name]))
    # one for all layers of a kind, so that they share what is compiled
    forwards = {
        kind: torch.compile(_unchecked(kind), dynamic=True, backend=backend or "inductor", mode=mode)
        for kind in {type(layer) for layer in layers}
    }
    for layer in layers:
        layer.forward = types.MethodType(functools.partial(_forward, forwards[type(layer)]), layer)
    inner._align_forward = _eager(inner._align_forward)
    return len(layers)


def _unchecked(kind: type[nn.Module]) -> Callable:
    """A layer's forward without the checkpointing that transformers wraps around it."""
    forward: Any = kind.forward
    return forward.__wrapped__ if issubclass(kind, GradientCheckpointingLayer) else forward


def _forward(compiled: Callable, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer's forward; checkpointing stays outside, since what runs inside it cannot stop at attention."""
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        return layer._gradient_checkpointing_func(functools.partial(compiled, layer, **kwargs), *args)
    return compiled(layer, *args, **kwargs)


def _eager(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return forward(*args, **kwargs)

    return run
