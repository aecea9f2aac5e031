"""Errors against float64: ours beside the model's own, at the same precision and on the same device."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from zoo import distance, gradients, kept

from align.engine.layout import TreeBatch

# what weights are kept in, and what a forward computes in
PRECISIONS = ("bf16", "autocast", "fp32")
TIMES_ITS_OWN = 3.0


class Reading(NamedTuple):
    """Per-token values and the gradients of their weighted sum by parameter, float64 on the CPU."""

    values: Tensor
    gradients: dict[str, Tensor]


def weight_dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def weights_of(model: nn.Module, precision: str) -> Any:
    """A copy of ``model`` with weights of that precision."""
    return copy.deepcopy(model).to(weight_dtype(precision))


def exact(model: nn.Module) -> Any:
    """A copy in float64 on the CPU. Grouped products of experts know no float64, so experts go one by one."""
    wide = copy.deepcopy(model).cpu().double()
    if getattr(wide.config, "num_experts", None):
        wide.set_experts_implementation("eager")
    return wide


def computing(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 autocast where that is the precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "autocast" else contextlib.nullcontext()


def compute_dtype(precision: str) -> torch.dtype:
    return torch.float32 if precision == "fp32" else torch.bfloat16


def read(model: nn.Module, precision: str, score: Callable[[Any], Tensor]) -> Reading:
    """What ``score`` gives for ``model``; the backward runs outside of autocast, as a trainer's does."""
    device = next(model.parameters()).device
    with computing(precision, device):
        values = score(model).flatten()
    found = gradients(model, values)
    return Reading(values.detach().double().cpu(), {name: g.double().cpu() for name, g in found.items()})


def own_padded(model: nn.Module, batch: TreeBatch) -> list[Tensor]:
    """Log-probs [T_i] of each branch's targets by the model's own ``.logits``, all rows in one padded batch."""
    device = next(model.parameters()).device
    pairs = batch.branches()
    rows = [torch.tensor([*tree.prompt, *branch.ids], device=device) for tree, branch in pairs]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(input_ids=pad_sequence(rows, batch_first=True), attention_mask=mask, use_cache=False).logits
    out = []
    for k, ((tree, branch), row) in enumerate(zip(pairs, rows, strict=True)):
        first = len(tree.prompt)
        logp = logits[k, first - 1 : len(row) - 1].float().log_softmax(-1).gather(1, row[first:, None])[:, 0]
        out.append(logp[kept(branch).to(device)])
    return out


def assert_as_good(ours: Reading, own: Sequence[Reading], truth: Reading) -> None:
    """Values and gradients are at most three times as far from float64 as the model's own are."""
    for name, away in (("values", _value_error), ("gradients", _gradient_error)):
        error, allowed = away(ours, truth), TIMES_ITS_OWN * max(away(reading, truth) for reading in own)
        assert error <= allowed, f"{name}: error {error:.1e}, three times the model's own is {allowed:.1e}"


def _value_error(reading: Reading, truth: Reading) -> float:
    return float((reading.values - truth.values).norm() / truth.values.norm())


def _gradient_error(reading: Reading, truth: Reading) -> float:
    return distance(reading.gradients, truth.gradients)
