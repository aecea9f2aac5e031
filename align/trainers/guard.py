"""The callback that every trainer of ours has: no broken checkpoint, no lost reference rows."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Guard(TrainerCallback):
    """Ends a run whose loss, gradient or weights are not finite, at log steps and before every save.

    It also writes the reference store to disk before a checkpoint and at the end.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

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
