"""A reference that follows the policy: every few steps by a share (TR-DPO, arXiv 2404.09656), or all the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.engine.scoring import causal_model
from align.errors import UserError


def move(reference: nn.Module, policy: nn.Module, mix: float) -> None:
    """reference <- (1 - mix) reference + mix policy, each rank its own piece of every parameter."""
    theirs = dict(causal_model(policy).named_parameters())
    with torch.no_grad():
        for name, mine in causal_model(reference).named_parameters():
            _piece(mine).lerp_(_piece(theirs[name]).to(mine.dtype), mix)


def _piece(parameter: Any) -> Tensor:
    """What this rank holds: ZeRO-3 keeps it beside the parameter, FSDP2 inside the DTensor."""
    return parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter.detach()


class SyncReference(TrainerCallback):
    """Moves the reference of ``trainer`` every ``every`` optimizer steps.

    Raises:
        UserError: where there is no frozen copy that could move, or on resume, since checkpoints do not hold it.
    """

    def __init__(self, trainer: Any, every: int, mix: float) -> None:
        reference = trainer.reference
        if reference is None or reference.model is None:
            raise UserError("reference.sync_every needs a frozen copy of the reference (reference.strategy: copy).")
        names = {name for name, _ in causal_model(trainer.model).named_parameters()}
        if not {name for name, _ in causal_model(reference.model).named_parameters()} <= names:
            raise UserError("reference.sync_every cannot follow a fresh adapter: train the weights, or leave it out.")
        self.trainer, self.every, self.mix = trainer, every, mix

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            raise UserError("A run with reference.sync_every cannot be resumed: checkpoints do not hold the reference.")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            move(self.trainer.reference.model, self.trainer.model_wrapped, self.mix)
