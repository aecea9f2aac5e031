"""The vocabulary head, a few tokens at a time: reads and their gradients without ever holding the logits.

The head module itself is asked to do the work (its forward is extended), so that whatever shards its weight, ZeRO-3 or
FSDP2, gathers it around the call and around its backward as around any other module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.reads import LogProb, Read, evaluate

Finish = Callable[[Tensor], Tensor]

# Logits held at once, in bytes of float32. On a CPU small tiles stay near the cache; a GPU wants large matrix products.
_TILE_BYTES = {"cpu": 2**25}
_TILE_BYTES_ACCELERATOR = 2**29


@dataclass(frozen=True)
class ReferenceHead:
    """What is kept of a reference forward for reads of its distribution: hidden states [N, H] and its head."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    finish: Finish | None

    def logits(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Reference logits [n, V] in float32 (float64 stays) of a slice of target tokens."""
        return _project(self.hidden[rows], self.weight, self.bias, self.finish, dtype)


class HeadJob:
    """What the head is asked for in one call; ``kept`` is filled in when ``keep`` is set.

    A sharded weight is released after the call, so what is kept must be a copy: ``copy_weight``. No dataclass, for the
    reason given at ``Layout``.
    """

    def __init__(
        self,
        targets: Tensor,
        reads: tuple[Read, ...],
        finish: Finish | None,
        reference: ReferenceHead | None = None,
        *,
        keep: bool = False,
        copy_weight: bool = False,
    ) -> None:
        self.targets, self.reads, self.finish, self.reference = targets, reads, finish, reference
        self.keep, self.copy_weight = keep, copy_weight
        self.kept: ReferenceHead | None = None


def finish_of(config: Any) -> Finish | None:
    """What a model does to its logits after the head: a scale, then a soft cap; None where it does nothing.

    The names are those of transformers' configurations. A model with an unknown one is caught by the start-up probe.
    """
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            scale = float(getattr(config, name))
            break
    else:
        if getattr(config, "logits_scaling", None) is not None:
            scale = 1 / float(config.logits_scaling)
    cap = getattr(config, "final_logit_softcapping", None)
    if scale == 1.0 and cap is None:
        return None

    def finish(logits: Tensor) -> Tensor:
        logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return finish


def read_head(head: nn.Linear, hidden: Tensor, job: HeadJob) -> Tensor:
    """Evaluate ``job.reads`` for hidden states [N, H]; returns [R, N] in float32 (float64 stays)."""
    if job.keep:
        weight = head.weight.detach()
        bias = None if head.bias is None else head.bias.detach()
        if job.copy_weight:
            weight, bias = weight.clone(), None if bias is None else bias.clone()
        job.kept = ReferenceHead(hidden.detach(), weight, bias, job.finish)
    return _ChunkedReads.apply(hidden, head.weight, head.bias, head, job, _compute_dtype(hidden))


class _ChunkedReads(torch.autograd.Function):
    """Tiles of tokens: forward keeps only the hidden states; backward makes each tile's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: nn.Linear,
        job: HeadJob,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.head, ctx.job, ctx.dtype = head, job, dtype
        out = hidden.new_empty(
            len(job.reads), hidden.shape[0], dtype=torch.float64 if dtype == torch.float64 else torch.float32
        )
        with _no_autocast(hidden):
            cast = weight.to(dtype)
            for rows in _tiles(hidden, weight.shape[0]):
                logits = _project(hidden[rows], cast, bias, job.finish, dtype)
                reference = job.reference.logits(rows, dtype) if job.reference is not None else None
                out[:, rows] = evaluate(job.reads, logits, job.targets[rows], reference)
        ctx.save_for_backward(hidden, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, out = ctx.saved_tensors
        # the parameter is looked up again: a sharded one is gathered around this backward, in a place of its own
        weight, bias, job = ctx.head.weight, ctx.head.bias, ctx.job
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        wide = torch.float64 if ctx.dtype == torch.float64 else torch.float32
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=hidden.device) if need_weight else None
        grad_bias = torch.zeros(bias.shape, dtype=wide, device=hidden.device) if need_bias else None
        with _no_autocast(hidden):
            cast = weight.detach().to(ctx.dtype)
            for rows in _tiles(hidden, weight.shape[0]):
                grad_logits = _grad_logits(hidden[rows], cast, bias, job, rows, out[:, rows], grad[:, rows], ctx.dtype)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                narrow = grad_logits.to(ctx.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = (narrow @ cast).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, narrow.t(), hidden[rows].to(ctx.dtype))
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _grad_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    job: HeadJob,
    rows: slice,
    out: Tensor,
    grad: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient [n, V] with respect to the head's raw output, for the reads' values and upstream gradients [R, n]."""
    targets = job.targets[rows]
    raw = _project(hidden, weight, bias, None, dtype)
    if job.finish is None and job.reads == (LogProb(),):
        # the common case in closed form, in place: d log p(y) / d logits = onehot(y) - softmax
        upstream = grad[0].to(raw.dtype)[:, None]
        normaliser = raw.gather(1, targets[:, None]) - out[0][:, None]
        raw.sub_(normaliser).exp_().mul_(-upstream)
        return raw.scatter_add_(1, targets[:, None], upstream)
    which = [i for i, read in enumerate(job.reads) if read.differentiable]
    if not which:
        return torch.zeros_like(raw)
    reads = tuple(job.reads[i] for i in which)
    reference = job.reference.logits(rows, dtype) if job.reference is not None else None
    with torch.enable_grad():
        raw.requires_grad_()
        values = evaluate(reads, raw if job.finish is None else job.finish(raw), targets, reference)
        return torch.autograd.grad(values, raw, grad[which].to(values.dtype))[0]


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish | None, dtype: torch.dtype) -> Tensor:
    logits = _product(hidden.to(dtype), weight.to(dtype).t())
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return logits if finish is None else finish(logits)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, summed and returned in float32 (float64 stays): 16-bit logits would be off by up to 0.06 nats."""
    return a @ b if a.dtype.itemsize > 2 else torch.mm(a, b, out_dtype=torch.float32)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b`` without rounding the product to 16 bits before it is added."""
    if a.dtype.itemsize > 2:
        total.addmm_(a, b)
    else:  # torch.addmm takes a float32 sum beside 16-bit factors only from some version on
        total += _product(a, b)


def _tiles(hidden: Tensor, vocabulary: int) -> list[slice]:
    tile = _TILE_BYTES.get(hidden.device.type, _TILE_BYTES_ACCELERATOR)
    rows = max(16, tile // (4 * vocabulary))
    return [slice(i, min(i + rows, hidden.shape[0])) for i in range(0, hidden.shape[0], rows)]


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """What the head's factors are given in. Only CUDA multiplies 16-bit factors into float32; others get them wide."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return dtype if dtype.itemsize > 2 or device == "cuda" else torch.float32


def _no_autocast(hidden: Tensor) -> torch.autocast:
    return torch.autocast(hidden.device.type, enabled=False)
