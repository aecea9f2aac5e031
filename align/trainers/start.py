"""At the first batch: is the reference what the policy is?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from align.engine.layout import TreeBatch
from align.errors import UserError


def compare_at_start(trainer: Any, model: nn.Module, batch: TreeBatch) -> float:
    """Mean gap per token between policy and reference at step 0; it checks the store against live rows, too."""
    assert trainer.reference is not None
    batch = batch.only(trainer.reference.branches)
    was_training = model.training
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        live = trainer.engine(model, batch).tokens["logp"]
    missing = trainer.needs_reference_pass([batch])[0]
    reference = trainer.reference.scores(
        model, batch, compute=missing, keep=False, autocast=trainer.accelerator.autocast
    ).tokens["logp"]
    model.train(was_training)
    # a dummy batch has tokens of its own, which no store holds
    sums = torch.stack(((live - reference).abs().sum(), reference.abs().sum(), live.new_tensor(float(len(live)))))
    distance, size, count = trainer.sum_over_ranks(sums * float(batch.units["examples"] > 0)).tolist()
    gap = distance / max(count, 1.0)
    # the same rows computed twice agree (almost) exactly; stored ones come from other packs, which round otherwise
    rounding = torch.finfo(compute_dtype(trainer)).eps * (1 + size / max(count, 1.0))
    allowed = max(1e-4, rounding / 4 if missing else 4 * rounding)
    if not gap <= allowed:
        source = "the reference store" if not missing else f"the reference (strategy {trainer.reference.strategy})"
        cure = (
            "Remove the store's folder and start again."
            if not missing
            else "Use reference.strategy: copy, or start from the model that the reference should be."
        )
        raise UserError(
            f"At the start {source} differs from the policy by {gap:.2e} nats per token "
            f"(at most {allowed:.1e} is rounding), so it is not what the policy was at the start. {cure}"
        )
    return gap


def compute_dtype(trainer: Any) -> torch.dtype:
    """What the trainer's forwards compute in."""
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision)
    return mixed or next(p.dtype for p in trainer.model.parameters() if p.is_floating_point())
