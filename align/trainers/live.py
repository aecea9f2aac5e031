"""The report of a run that still trains, rewritten at log steps, so that a browser tab can stay open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import told
from align.probes.budget import Budget
from align.report.limits import LIVE
from align.runs.directory import METRICS, RunDirectory
from align.runs.record import Lines, load_run
from align.runs.report import HTML, write_report

REFRESH = 10  # seconds after which the browser reads the page again, while the run trains


class Live(TrainerCallback):
    """Writes the report at the start, and at every log step that the budget allows. Add it behind ``Watch``.

    Args:
        run: the run directory; only its writer writes.
        budget: of the probes, in which the report has an equal part.
        echo: takes one line of text.
    """

    def __init__(self, run: RunDirectory, budget: Budget, *, echo: Callable[[str], Any] = print) -> None:
        self.run, self.budget, self.echo = run, budget, echo
        self._lines: Lines | None = None
        self._failed = False
        budget.add(LIVE)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._lines = Lines(self.run.path / METRICS)
        if self.run.writer and self._write():
            self.echo(f"watch.live: {self.run.path / HTML} is rewritten while the run trains; open it in a browser")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # the last report is written when the run has ended
        due = logs and "loss" in logs and state.global_step < state.max_steps
        if self.run.writer and due and not self._failed and self.budget.allows(LIVE):
            self._write()

    def _write(self) -> bool:
        """Whether it was written; what goes wrong is said once, and the run goes on without."""
        assert self._lines is not None
        try:
            with self.budget.timed(LIVE):
                write_report([load_run(self.run.path, self._lines)], self.run.path, refresh=REFRESH)
        except Exception as error:
            self._failed = True
            self.echo(f"watch.live: the report could not be written ({told(error)}); the run goes on without")
        return not self._failed
