"""A frozen reference under autocast, kept in the type that autocast would round it to at each forward anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.engine.scoring import causal_model


def narrow(model: nn.Module, dtype: torch.dtype, score: Callable[[TreeBatch], Tensor]) -> str:
    """Round float32 weights of ``model`` to ``dtype`` in place where no log-prob changes by one bit; say what became.

    Linear layers are rounded by autocast at every forward, so rounding them once gives the same numbers. Embeddings and
    the head, whose logits may be computed in float32, are rounded only where that loses nothing, as for a checkpoint of
    bfloat16 that was loaded in float32. Norms and whatever else has weights stay as they are.

    Args:
        dtype: what autocast computes in.
        score: log-probs of a batch on the model's device, as the reference computes them.
    """
    device = next(model.parameters()).device
    vocabulary = causal_model(model).config.get_text_config().vocab_size
    ids = [1 + i % (vocabulary - 1) for i in range(16)]
    batch = pack([Example((Tree(ids[:6], (Branch("chosen", ids[6:]), Branch("rejected", ids[9:]))),))]).to(device)
    kind = str(dtype).removeprefix("torch.")
    expected, wide = score(batch), _bytes(model)
    before = [(weight, weight.data) for weight in _roundable(model, dtype)]
    hooks = []
    for weight, values in before:
        weight.data = values.to(dtype)
    for module in model.modules():
        if type(module) is nn.Embedding and module.weight.dtype == dtype:
            hooks.append(module.register_forward_hook(_widened))
    try:
        fault = None if torch.equal(score(batch), expected) else "log-probs would not be the same"
    except (RuntimeError, TypeError, ValueError) as error:
        # a layer that reads its weights outside autocast
        fault = f"this architecture does not take them ({type(error).__name__})"
    if fault is None:
        return f"reference: weights kept in {kind}, {_bytes(model) / 1e9:.2f} GB in place of {wide / 1e9:.2f}"
    for weight, values in before:
        weight.data = values
    for hook in hooks:
        hook.remove()
    return f"reference: weights kept in float32 and not in {kind}, since {fault}"


def _roundable(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Parameter]:
    """The float32 parameters that may be kept in ``dtype``."""
    head = causal_model(model).get_output_embeddings()
    exact = [module for module in model.modules() if type(module) is nn.Embedding or module is head]
    linear = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D) and module is not head]
    shared = {id(weight) for module in exact for weight in module.parameters(recurse=False)}
    seen: set[int] = set()
    for module in (*exact, *linear):
        for weight in module.parameters(recurse=False):
            if weight.dtype != torch.float32 or id(weight) in seen:
                continue
            seen.add(id(weight))
            if id(weight) not in shared or torch.equal(weight.data.to(dtype).float(), weight.data):
                yield weight


def _widened(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    """What is looked up goes on in float32, as before."""
    return out.float()


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
