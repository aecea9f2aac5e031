"""The callback that every trainer of ours has: no save that fails, no broken checkpoint, no lost reference rows."""

from __future__ import annotations

import math
from typing import Any

from accelerate.utils import DistributedType
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.trainers.rehearsal import rehearse_save
from align.trainers.rounding import rounding_warning


class Guard(TrainerCallback):
    """Ends a run whose loss, gradient or weights are not finite, at log steps and before every save.

    Before the first step it tries what a save writes beside the weights, and looks whether the weights can take steps
    as small as the learning rate. It also writes the reference store to disk before a checkpoint and at the end.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        rehearse_save(trainer.model, trainer.processing_class, args.output_dir, args.should_save, trainer.say)
        # DeepSpeed keeps wide copies of narrow weights, and steps on these
        optimizer = kwargs.get("optimizer")
        narrow = trainer.accelerator.distributed_type != DistributedType.DEEPSPEED
        if optimizer is not None and narrow and (warning := rounding_warning(optimizer.param_groups)):
            trainer.say(warning)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.trainer.check_finite()
        # a loss scaler (float16) meets infinite gradients by design and skips those steps
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(float(norm)) and self.trainer.accelerator.scaler is None:
            self.trainer.stop_not_finite("gradient norm")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save:
            self._before_save()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save:
            self._before_save()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._before_save()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # with save_strategy "best" an evaluation decides on a save, after the step has ended
        self._before_save()

    def _before_save(self) -> None:
        """A checkpoint with a broken loss or broken weights must not take the place of a good one."""
        self.trainer.check_finite(weights=True)
        self.trainer.flush_reference()
