"""Means of what an objective reports, over the steps of training: for methods that adapt to the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

DECAY = 0.98  # of a mean at every step (arXiv 2604.18239)


class RunningMeans(TrainerCallback, ExportableState):
    """Exponential means of ``Terms.running``, one for each name, kept on the device and in checkpoints.

    They move once in an optimizer step, by the mean over all of its micro-batches and ranks, and are handed to the
    objective from the next step on. So neither accumulation nor the number of processes changes them.
    """

    def __init__(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        self.sum_over_ranks = sum_over_ranks
        self.means: dict[str, Tensor] = {}
        self._step: dict[str, Tensor] = {}

    def add(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add (sum, count) pairs of a micro-batch of training."""
        for key, (total, count) in pairs.items():
            pair = torch.stack((total.detach(), count.detach().to(total))).double()
            self._step[key] = self._step[key] + pair if key in self._step else pair

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._step:
            return
        keys = sorted(self._step)  # the same on all ranks
        totals = self.sum_over_ranks(torch.stack([self._step[key] for key in keys]))
        for key, (total, count) in zip(keys, totals, strict=True):
            mean = total / count.clamp(min=1)
            old = self.means.get(key, torch.full_like(mean, torch.nan))
            new = torch.where(old.isnan(), mean, DECAY * old + (1 - DECAY) * mean)
            self.means[key] = torch.where(count > 0, new, old)  # without waiting for the device
        self._step = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kept = (state.stateful_callbacks or {}).get(type(self).__name__)  # of the checkpoint that is resumed
        values = kept["attributes"]["values"] if isinstance(kept, dict) else {}
        self.means = {k: torch.tensor(v, dtype=torch.float64, device=args.device) for k, v in values.items()}

    def state(self) -> dict:
        """What transformers writes into a checkpoint's trainer_state.json."""
        return {"args": {}, "attributes": {"values": {key: value.item() for key, value in self.means.items()}}}
