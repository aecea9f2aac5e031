"""In the first step: does every process train what the launcher's command promised?"""

from __future__ import annotations

from typing import Any

from accelerate.utils import gather_object
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.runs.launch import Seen, check_step, wrapper_of


class Launched(TrainerCallback):
    """Looks once, when the first step's gradients are there and no weight has moved, on all processes together."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.done = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.done:
            return
        self.done = True
        accelerator, model = self.trainer.accelerator, self.trainer.model_wrapped
        kind, backend = str(accelerator.distributed_type.value), str(accelerator.state.backend)
        mine = Seen(accelerator.num_processes, kind, backend, wrapper_of(model), gradient_norm(model))
        check_step(gather_object([mine]) if accelerator.num_processes > 1 else [mine])


def gradient_norm(model: nn.Module) -> float | None:
    """Of the gradients that this process holds whole; None where they are shared out, or DeepSpeed's own."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or any(hasattr(gradient, "to_local") for gradient in gradients):
        return None
    return float(nn.utils.get_total_norm(gradients))
