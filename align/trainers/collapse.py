"""The guard against collapse: rewards that rise while the model says the same to everybody (arXiv 2310.16763)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import Stopped

REWARD, ALIKE = "reward/samples", "similarity/survivors"


class Collapse(TrainerCallback):
    """Warns, or ends the run, when kept samples of different prompts are alike and the reward is above the start's.

    Args:
        limit: METEOR similarity in [0, 1] above which samples count as alike.
        stop: end the run instead of warning. A warning is said once, and again when the similarity fell and returned.
    """

    def __init__(self, limit: float = 0.3, *, stop: bool = False, echo: Callable[[str], Any] = print) -> None:
        self.limit, self.stop, self.echo = limit, stop, echo
        self._said = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or ALIKE not in logs:
            return
        first = next(entry[REWARD] for entry in [*state.log_history, logs] if REWARD in entry)
        if logs[ALIKE] <= self.limit or logs.get(REWARD, first) <= first:
            self._said = self._said and logs[ALIKE] > self.limit
            return
        what = (
            f"the reward rose from {first:.2f} to {logs[REWARD]:.2f} while answers to different prompts became alike "
            f"(METEOR {logs[ALIKE]:.2f}, limit {self.limit:g}): a collapse, not an improvement"
        )
        if self.stop:
            raise Stopped(
                f"Stopped at step {state.global_step}: {what}. Raise the weight of the KL term, or lower "
                "train.learning_rate. Saved checkpoints are kept. See: align explain collapse."
            )
        if not self._said:
            self._said = True
            if state.is_world_process_zero:
                self.echo(f"warning: {what}: align explain collapse")
