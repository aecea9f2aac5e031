"""Fused layers: Liger's RMSNorm, rotary embedding and gated MLP in place of a model's own, checked at the start.

Liger's functions know which of its kernels stand for which layers of an architecture. They also replace names of the
modeling file, for every model that is made later in this process; here those are put back at once, so that whatever is
changed belongs to the modules of one model and can be undone.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from align.engine.scoring import causal_model

_LENGTHS = (11, 7, 3)  # rows of the check


@dataclass(frozen=True)
class Fusion:
    """What came of fusing a model's layers.

    Attributes:
        reason: why the layers stay as they are; None where they are fused.
        nats: largest change of a log-prob.
        gradient: change of the gradient, as a share of its norm.
    """

    reason: str | None
    nats: float = 0.0
    gradient: float = 0.0

    def sentence(self) -> str:
        if self.reason is not None:
            return f"layers: not fused, because {self.reason}"
        return (
            f"layers: fused by liger-kernel (a log-prob changes by at most {self.nats:.1e} nats, the gradient by "
            f"{self.gradient:.1e} of its norm)"
        )


def fuse(model: nn.Module, compute_dtype: torch.dtype | None = None, agree: Callable[[bool], bool] = bool) -> Fusion:
    """Fuse the layers of ``model`` in place where that changes its log-probs and gradients by rounding alone.

    The model must be whole and on its device. A copy of it has fused layers too.

    Args:
        compute_dtype: what autocast computes in; None without autocast.
        agree: all-reduces a flag over ranks (true only where all are true), so that every rank takes the same layers.
    """
    inner = causal_model(model)
    alone, padded = _behaviour(inner, compute_dtype), _behaviour(inner, compute_dtype, padded=True)
    undo = _Undo(inner)
    reason: str | None = f"liger-kernel does not know {inner.config.model_type}"
    nats = gradient = 0.0
    try:
        if _patch(inner):
            eps = torch.finfo(compute_dtype or inner.dtype).eps
            nats, gradient, reason = _compared(_behaviour(inner, compute_dtype), alone, padded, eps)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a library's kernels stumble over: the model's own layers are there
        reason = f"liger-kernel's layers fail in this model ({type(error).__name__}: {_first_line(error)})"
    if not agree(reason is None):
        undo()
        return Fusion(reason or "another process cannot fuse them", nats, gradient)
    return Fusion(None, nats, gradient)


def _patch(model: PreTrainedModel) -> bool:
    """Let Liger change the modules of ``model``, and nothing else; returns whether it knows the architecture."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    modeling = vars(inspect.getmodule(type(model)))
    before = dict(modeling)
    try:
        # the head and its loss are the engine's
        _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    finally:
        changed = {name: value for name, value in modeling.items() if name in before and value is not before[name]}
        modeling.update({name: before[name] for name in changed})
    functions = {name: value for name, value in changed.items() if inspect.isfunction(value)}
    for module in model.modules():
        forward = inspect.unwrap(type(module).forward)
        if "forward" not in vars(module) and not functions.keys().isdisjoint(forward.__code__.co_names):
            # the layer's own code, with Liger's function under the name that it calls
            module.forward = types.MethodType(_reading(forward, functions), module)
    return bool(changed)


def _reading(function: Any, names: dict[str, Any]) -> Any:
    """``function`` with other values for global names that it reads."""
    other = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    other.__kwdefaults__ = function.__kwdefaults__
    return other


class _Undo:
    """Puts every module of a model back to what it was when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self.before = [(module, dict(vars(module))) for module in model.modules()]

    def __call__(self) -> None:
        for module, attributes in self.before:
            vars(module).clear()
            vars(module).update(attributes)


# ---- the check

_Behaviour = tuple[Tensor, Tensor]  # log-probs [N] and a gradient [M], both float64


def _behaviour(model: PreTrainedModel, compute_dtype: torch.dtype | None, padded: bool = False) -> _Behaviour:
    """Log-probs of random rows by the model's own forward, and the gradient of a weighted sum of them.

    The gradient is that of the embedded tokens, which passes through every layer, and of norm weights and biases.
    """
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    rows = [torch.randint(vocabulary, (n,), generator=generator).to(device) for n in _LENGTHS]
    vectors = [p for p in model.parameters() if p.dim() == 1 and p.requires_grad and p.is_floating_point()]
    autocast = nullcontext() if compute_dtype is None else torch.autocast(device.type, compute_dtype)
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad(), autocast:
            embedded, logits = zip(*_forwards(model, rows, padded), strict=True)
            values = [
                whole[: len(row) - 1].double().log_softmax(-1).gather(1, row[1:, None])[:, 0]
                for whole, row in zip((w for batch in logits for w in batch), rows, strict=True)
            ]
        logp = torch.cat(values)
        weights = torch.linspace(-1.0, 2.0, len(logp), dtype=torch.float64, device=device)
        found = torch.autograd.grad((logp * weights).sum(), [*embedded, *vectors], materialize_grads=True)
    finally:
        model.train(was_training)
    of_rows = [gradient for batch in found[: len(embedded)] for gradient in batch]
    tokens = [gradient[: len(row)] for gradient, row in zip(of_rows, rows, strict=True)]
    return logp.detach(), torch.cat([g.double().flatten() for g in (*tokens, *found[len(embedded) :])])


def _forwards(model: PreTrainedModel, rows: list[Tensor], padded: bool) -> Iterator[_Behaviour]:
    """Embedded tokens [B, T, H] and logits [B, T, V], of all rows in one padded batch or of one row at a time."""
    for batch in [rows] if padded else [[row] for row in rows]:
        ids = pad_sequence(batch, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        yield embedded, model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits


def _compared(fused: _Behaviour, alone: _Behaviour, padded: _Behaviour, eps: float) -> tuple[float, float, str | None]:
    """Change of log-probs and of the gradient, and a fault where one is more than the model's own rounding."""
    (nats, gradient), (own_nats, own_gradient) = _distance(fused, alone), _distance(padded, alone)
    # padding may happen to change nothing, and rounding still may: a few units of the compute type's last place
    if not nats <= max(2 * own_nats, 4 * eps * (1 + alone[0].abs().max().item())):
        return nats, gradient, f"with liger-kernel's layers a log-prob changes by {nats:.1e} nats"
    if not gradient <= max(2 * own_gradient, 16 * eps):
        return nats, gradient, f"with liger-kernel's layers the gradient changes by {gradient:.1e} of its norm"
    return nats, gradient, None


def _distance(one: _Behaviour, other: _Behaviour) -> tuple[float, float]:
    """Largest difference of log-probs in nats, and that of the gradients relative to the second one's norm."""
    nats = (one[0] - other[0]).abs().max().item()
    return nats, ((one[1] - other[1]).norm() / other[1].norm()).item()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
