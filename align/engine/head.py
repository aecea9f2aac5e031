"""The vocabulary head: reads and their gradients without ever holding the logits.

Log-probs alone, which most objectives read, come in tiles of the vocabulary (``logprob.py``). Reads of the whole
distribution need whole rows of logits and come a few tokens at a time.

The head module itself is asked to do the work (its forward is extended), so that whatever shards its weight, ZeRO-3 or
FSDP2, gathers it around the call and around its backward as around any other module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.fused import Finish
from align.engine.gradients import gradient_products
from align.engine.logprob import LogProbs
from align.engine.reads import LogProb, Read, evaluate
from align.engine.tiles import add_product, compute_dtype, no_autocast, product, slices, wide

# Logits held at once for reads of whole rows. Each tile adds to the gradient of the whole weight, so the fewer the
# better; on a CPU they should stay near the cache all the same.
_AREA = {"cpu": 2**23}
_AREA_ACCELERATOR = 2**27


@dataclass(frozen=True)
class ReferenceHead:
    """What is kept of a reference forward for reads of its distribution: hidden states [N, H] and its head."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    finish: Finish

    def logits(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Reference logits [n, V] in float32 (float64 stays) of a slice of target tokens."""
        return self.finish(_project(self.hidden[rows], self.weight, self.bias, dtype))


class HeadJob:
    """What the head is asked for in one call.

    ``kept`` is filled in when ``keep`` is set, ``products`` [B, 3] when there are ``pairs`` of answers, each the tokens
    of both, whose gradients shall be compared.

    A sharded weight is released after the call, so what is kept must be a copy: ``copy_weight``. No dataclass, for the
    reason given at ``Layout``.
    """

    def __init__(
        self,
        targets: Tensor,
        reads: tuple[Read, ...],
        finish: Finish,
        reference: ReferenceHead | None = None,
        *,
        keep: bool = False,
        copy_weight: bool = False,
        pairs: Sequence[tuple[slice, slice]] | None = None,
    ) -> None:
        self.targets, self.reads, self.finish, self.reference = targets, reads, finish, reference
        self.keep, self.copy_weight = keep, copy_weight
        self.pairs = pairs
        self.kept: ReferenceHead | None = None
        self.products: Tensor | None = None


def finish_of(config: Any) -> Finish:
    """What a model does to its logits after the head, most often nothing.

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
    return Finish(scale, None if cap is None else float(cap))


def read_head(head: nn.Linear, hidden: Tensor, job: HeadJob) -> Tensor:
    """Evaluate ``job.reads`` for hidden states [N, H]; returns [R, N] in float32 (float64 stays)."""
    if job.keep:
        weight = head.weight.detach()
        bias = None if head.bias is None else head.bias.detach()
        if job.copy_weight:
            weight, bias = weight.clone(), None if bias is None else bias.clone()
        job.kept = ReferenceHead(hidden.detach(), weight, bias, job.finish)
    dtype = compute_dtype(hidden)
    # the policy reads other things beside a kept reference, by whole rows: equal log-probs need sums in the same order
    if job.reads == (LogProb(),) and not job.keep:
        logprobs = LogProbs.apply(hidden, head.weight, head.bias, head, job.targets, job.finish, dtype)
        values = torch.stack([logprobs])  # no view, of which FSDP2 warns among the outputs of a module
    else:
        values = _ChunkedReads.apply(hidden, head.weight, head.bias, head, job, dtype)
    if job.pairs is not None:
        logprobs = values[job.reads.index(LogProb())].detach()
        answers = (job.targets, logprobs, job.finish, job.pairs)
        job.products = gradient_products(hidden, head.weight, head.bias, *answers, dtype)
    return values


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
        out = hidden.new_empty(len(job.reads), hidden.shape[0], dtype=wide(dtype))
        with no_autocast(hidden):
            cast = weight.to(dtype)
            for rows in _blocks(hidden, len(weight)):
                logits = job.finish(_project(hidden[rows], cast, bias, dtype))
                reference = job.reference.logits(rows, dtype) if job.reference is not None else None
                out[:, rows] = evaluate(job.reads, logits, job.targets[rows], reference)
        ctx.save_for_backward(hidden)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        # the parameter is looked up again: a sharded one is gathered around this backward, in a place of its own
        weight, bias, job = ctx.head.weight, ctx.head.bias, ctx.job
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.empty_like(weight, dtype=wide(ctx.dtype)) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide(ctx.dtype)) if need_bias else None
        with no_autocast(hidden):
            cast = weight.detach().to(ctx.dtype)
            for rows in _blocks(hidden, len(weight)):
                gradient = grad_logits(hidden[rows], cast, bias, job, rows, grad[:, rows], ctx.dtype)
                if grad_bias is not None:
                    grad_bias += gradient.sum(0)
                narrow = gradient.to(ctx.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = (narrow @ cast).to(hidden.dtype)
                if grad_weight is not None:
                    add_product(grad_weight, narrow.t(), hidden[rows].to(ctx.dtype), fresh=rows.start == 0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def grad_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    job: HeadJob,
    rows: slice,
    grad: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient [n, V] with respect to the head's raw output, for upstream gradients [R, n]."""
    raw = _project(hidden, weight, bias, dtype)
    which = [i for i, read in enumerate(job.reads) if read.differentiable]
    if not which:
        return torch.zeros_like(raw)
    reads = tuple(job.reads[i] for i in which)
    reference = job.reference.logits(rows, dtype) if job.reference is not None else None
    with torch.enable_grad():
        raw.requires_grad_()
        values = evaluate(reads, job.finish(raw), job.targets[rows], reference)
        return torch.autograd.grad(values, raw, grad[which].to(values.dtype))[0]


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = product(hidden.to(dtype), weight.to(dtype).t())
    return logits if bias is None else logits + bias.to(logits.dtype)


def _blocks(hidden: Tensor, vocabulary: int) -> list[slice]:
    return slices(len(hidden), block_rows(hidden.device.type, vocabulary))


def block_rows(device: str, vocabulary: int) -> int:
    """Tokens whose whole rows of logits are held at once on a type of device."""
    return max(16, _AREA.get(device, _AREA_ACCELERATOR) // vocabulary)
