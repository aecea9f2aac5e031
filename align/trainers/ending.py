"""A run that is asked to end does so at the end of a step, with a checkpoint that it goes on from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import Stopped
from align.runs.go_on import go_on
from align.runs.signals import RESULT, SIGNALS, STEP


class Ending(TrainerCallback):
    """Saves and raises ``Stopped`` on every rank at the end of the step in which any was asked to end.

    Ranks agree through the reduction that each step begins with: ``begin`` takes what it adds up, and nobody waits for
    the device. With several ranks a run therefore ends with the step after the one in which it was asked, at the
    latest. Add it before the callback that looks at weights before a save.
    """

    def __init__(self) -> None:
        self._count: Tensor | None = None  # on the host, of ranks that were asked before this step
        self._copied: Any = None  # when it has come from the device
        self._ends = False

    def begin(self, asked: Tensor) -> None:
        """Take how many ranks were asked to end, a tensor [] on the device, at the begin of a step."""
        self._count, self._copied = asked, None
        if asked.device.type != "cpu":
            self._count = torch.empty_like(asked, device="cpu", pin_memory=asked.device.type == "cuda")
            self._count.copy_(asked, non_blocking=True)
            self._copied = torch.Event(asked.device)
            self._copied.record()

    def _asked(self) -> bool:
        """Whether any rank was asked to end, the same on all of them."""
        if self._count is None:
            return bool(SIGNALS.asked)
        if self._copied is not None:
            self._copied.synchronize()  # the begin of this step has passed, or the device is about to reach it
        return self._count.item() > 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        SIGNALS.until = STEP

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._asked():
            self._ends = SIGNALS.saving = control.should_save = True
            args.save_only_model = False  # the run is to go on from here
            control.should_evaluate = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._ends:
            return None
        why = f"Stopped by {SIGNALS.asked or 'a signal to another process'} at step {state.global_step}, which is saved"
        raise Stopped(f"{why}. {go_on(SIGNALS.run)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        SIGNALS.until = RESULT
