"""A test suite before, while and after a run trains: its trajectory, when to stop, and the step that tested best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.recipe.stop_rule import StopRule
from align.report.trajectory import draw_trajectories, trajectory
from align.report.unlearning import number
from align.runs.directory import RunDirectory

FOLDER = "eval"
BEST = "best"
LOG = "TOFU_EVAL.json"
PICTURE = "trajectory.png"


class Record(Protocol):
    """What can be kept as JSON."""

    def to_json(self) -> dict[str, Any]: ...


class Outcome(Protocol):
    """One evaluation: the per-item log, and what follows from it."""

    @property
    def log(self) -> Record: ...
    @property
    def result(self) -> Record: ...
    def reading(self) -> dict[str, float]:
        """Metrics by the names of ``align.recipe.stop_rule.METRICS``."""


class Suite(Protocol):
    """A test suite: measures a ``Subject``. Every process calls it and all get the result."""

    @property
    def target(self) -> Record | None:
        """The log of the model that it compares with, or None."""

    def target_reading(self) -> dict[str, float] | None:
        """What it reads of that model itself."""

    def __call__(self, subject: Any) -> Outcome: ...


class Evaluation(TrainerCallback):
    """Runs ``suite`` at the start, every ``every`` steps (None: at the end of each epoch) and at the end.

    Every reading is a record of ``metrics.jsonl``. ``eval/step-N.json`` holds all metrics, ``eval/TOFU_EVAL.json`` the
    items of the last reading, ``eval/trajectory.png`` shows them all. The step with the highest forget quality among
    those that keep ``keep_utility`` of the utility at the start is saved to ``best/``; it is selected on the test, and
    says so.

    Args:
        trainer: the AlignTrainer it is added to.
        subject: makes the suite's view of the trainer's model.
        stop_when: ends the run, with everything saved, where it holds.
        echo: takes one line of text, on the main process.
    """

    def __init__(
        self,
        trainer: Any,
        run: RunDirectory,
        suite: Suite,
        subject: Callable[[], Any],
        *,
        every: int | None = None,
        keep_utility: float = 0.9,
        stop_when: StopRule | None = None,
        echo: Callable[[str], Any] = print,
    ) -> None:
        self.trainer, self.run, self.suite, self.subject = trainer, run, suite, subject
        self.every, self.keep_utility, self.rule, self.echo = every, keep_utility, stop_when, echo
        self.start: dict[str, float] = {}
        self.best: dict[str, Any] | None = None
        self.stopped = ""
        self._read_at = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self.start = self._read(state, control)
            return
        saved = [r for r in self.run.metrics() if r["step"] <= state.global_step]
        read = [(r["step"], r["evaluation"]) for r in saved if isinstance(r.get("evaluation"), Mapping)]
        best = [r["best"] for r in saved if isinstance(r.get("best"), Mapping)]
        self.best = best[-1] if best else None
        if read:
            self.start, (self._read_at, last) = read[0][1], read[-1]
            if self._read_at == state.global_step:  # the rule may have ended the run there
                self._obey(last, control, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._read(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.every is None and state.global_step != self._read_at:
            self._read(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step != self._read_at:
            self._read(state, control)
        self._draw(args)

    def _draw(self, args: TrainingArguments) -> None:
        """The picture of the trajectory, where there is a retain model and utility to draw it by."""
        readings = trajectory(self.run.metrics()) if self.run.writer else []
        target = self.suite.target_reading()
        complete = all({"forget_quality", "utility"} <= set(reading) for reading in readings)
        if len(readings) < 2 or target is None or "utility" not in target or not complete:
            return
        name = self.run.path.name
        draw_trajectories(self.run.path / FOLDER / PICTURE, readings[0], target, {name: readings})

    def _read(self, state: TrainerState, control: TrainerControl) -> dict[str, float]:
        """Run the suite and act on it; every process does, so that all of them stop and save together."""
        self.trainer.check_finite(weights=True)
        began = time.monotonic()
        outcome = self.suite(self.subject())
        reading = outcome.reading()
        step = self._read_at = state.global_step
        self.run.write_json(f"{FOLDER}/step-{step}.json", {"step": step, **outcome.result.to_json()})
        self.run.write_json(f"{FOLDER}/{LOG}", outcome.log.to_json())
        record = {"step": step, "evaluation": reading, "evaluation_seconds": time.monotonic() - began}
        if step == 0 and (retain := self.suite.target_reading()) is not None:
            record["retain"] = retain
        if self._better(reading):
            self._keep(step, reading, outcome)
            record["best"] = self.best
        self.run.append_metrics(record)
        self.echo(line(step, reading))
        self._obey(reading, control, step)
        return reading

    def _obey(self, reading: Mapping[str, float], control: TrainerControl, step: int) -> None:
        """End training where the rule says so."""
        if self.rule is not None and step and (why := self.rule.met(reading, self.start)):
            self.stopped = f"step {step}, {why}"
            control.should_training_stop = True

    def _better(self, reading: Mapping[str, float]) -> bool:
        quality, utility = reading.get("forget_quality"), reading.get("utility")
        if quality is None or utility is None or "utility" not in self.start:  # the start itself forgot nothing
            return False
        # nothing is nothing to lose, and a model that answers nothing has forgotten all
        enough = utility > 0 and utility >= self.keep_utility * self.start["utility"]
        return enough and (self.best is None or quality > self.best["forget_quality"])

    def _keep(self, step: int, reading: Mapping[str, float], outcome: Outcome) -> None:
        folder = self.run.path / BEST
        self.trainer.save_model(str(folder))
        self.best = {"step": step, **reading, "path": str(folder)}
        note = "selected by forget quality on the test questions themselves: too good to be reported as a result"
        self.run.write_json(f"{BEST}/selected.json", {**self.best, "note": note})
        self.run.write_json(f"{BEST}/{LOG}", outcome.log.to_json())


def line(step: int, reading: Mapping[str, float]) -> str:
    """One evaluation as a line of text; forget quality with utility beside it."""
    parts = []
    if "forget_quality" in reading:
        parts.append(f"forget quality {number(reading['forget_quality'])} (D {reading['D']:.2f}, n {reading['n']})")
    utility = f"utility {number(reading.get('utility'))}"
    if "utility_retain" in reading:
        utility += f" (retained rows {number(reading['utility_retain'])})"
    parts += [utility, f"P(forgotten answer) {number(reading.get('forget_probability'))}"]
    return f"{step:5d}   tested: " + "   ".join(parts)
