"""What is measured, shown and guarded while a run trains: the probe set, one line per log step, samples, stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import Stopped
from align.models.ends import end_ids
from align.models.generate import greedy, padding
from align.models.subject import positions
from align.models.whole import for_generation
from align.objectives.base import FRESH
from align.probes.budget import Budget
from align.report.progress import Progress, columns_for
from align.runs.directory import RunDirectory
from align.trainers.answers import Answers
from align.trainers.own_text import OwnAnswers, OwnText
from align.trainers.probing import PairProbe, Probe

SAMPLES = "samples.jsonl"
_NEW_TOKENS = 128


class Watch(TrainerCallback):
    """Reads the probe set, writes ``metrics.jsonl``, prints progress, samples, and ends a run that went wrong.

    Args:
        trainer: the AlignTrainer it is added to.
        run: the run directory.
        rows: prepared probe rows; empty for none.
        probes: what is read beside the pairs in ``rows``.
        every: steps between readings; None for every log step that ``budget`` allows.
        budget: share of the training time that readings may take, where ``every`` is None.
        chosen_drop_nats, stop_on_drop: the guard on chosen answers.
        answers: how many of the rows' prompts the policy answers: greedily at the start and at the end, and with
            samples, which a probe reads.
        prompts: token ids of prompts to sample from every ``generate_every`` steps.
        echo: takes one line of text, on the main process.
    """

    def __init__(
        self,
        trainer: Any,
        run: RunDirectory,
        rows: Sequence[Mapping[str, Any]],
        *,
        probes: Sequence[Probe] = (),
        every: int | None = None,
        budget: float = 0.05,
        chosen_drop_nats: float = 20.0,
        stop_on_drop: bool = False,
        answers: int = 0,
        prompts: Sequence[Sequence[int]] = (),
        generate_every: int | None = None,
        echo: Callable[[str], Any] = print,
    ) -> None:
        self.trainer, self.run, self.rows, self.every = trainer, run, list(rows), every
        self.limit, self.stop_on_drop = chosen_drop_nats, stop_on_drop
        self.prompts, self.generate_every, self.echo = prompts, generate_every, echo
        self.answers = Answers(trainer, run, self.rows, answers, echo)
        self.drawn = OwnAnswers(trainer, run, self.rows, answers)
        self.pairs = PairProbe(trainer, run, self.rows, self.drawn) if rows else None
        self.own = OwnText(trainer, self.drawn, self.pairs) if self.drawn.prompts else None
        own: tuple[Probe | None, ...] = (self.pairs, self.own)
        self.probes = [*(probe for probe in own if probe is not None), *probes]
        self.budget = Budget(budget, [probe.name for probe in self.probes])
        self.progress: Progress | None = None
        self._clock = (0.0, 0, 0)  # time, step and tokens at the last line
        self._read_at: dict[str, int] = {}  # step of each probe's last reading
        self._begun = (0.0, 0)
        self._start_said = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        columns = columns_for(self.trainer.objective)
        self.progress = Progress(
            echo=self.echo, total_steps=state.max_steps, chosen_drop_nats=self.limit, columns=columns
        )
        warm = args.get_warmup_steps(state.max_steps)
        if warm >= state.max_steps and not str(args.lr_scheduler_type).endswith("constant"):
            self.echo(
                f"warning: the warm-up takes {warm} steps and the run {state.max_steps}: the learning rate never "
                f"reaches {args.learning_rate:g}. Lower train.warmup_steps, or train longer."
            )
        model = self.trainer.model_wrapped
        self.trainer.get_ready(model)
        if state.global_step:
            names = {probe.name for probe in self.probes}
            for probe in self.probes:
                probe.restore()
            self._read_at = {key: record["step"] for record in self.run.metrics() for key in names & set(record)}
        else:
            self.drawn.begin()
            self.run.append_metrics({"step": 0, **self._read(0, self.probes)})
            self._evaluate_start()
            self.answers.give(0)
            self._generate(state)
        self.budget.begin()
        self._begun = (time.monotonic(), state.global_step)
        self._clock = (*self._begun, self.trainer.train_tokens)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            if logs and "train_runtime" not in logs:
                self.run.append_metrics({"step": state.global_step, **logs})
            return
        record: dict[str, Any] = {"step": state.global_step, **logs, **self._speed(state)}
        if state.global_step >= state.max_steps:
            self.budget.end()
        record |= self._read(state.global_step, self._due(state))
        self._clock = (time.monotonic(), *self._clock[1:])  # tokens per second are those of training
        self.run.append_metrics(record)
        assert self.progress is not None
        self.progress.log(record)
        self._stop_on_drop(record, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.budget.end()
        # the verdict compares with the end, also where the last step was no log step
        left = [probe for probe in self.probes if self._read_at.get(probe.name) != state.global_step]
        if left:
            self.run.append_metrics({"step": state.global_step, **self._read(state.global_step, left)})
        self.answers.give(state.global_step)
        self._say_skipped()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._start_said is False and self.trainer.start_reading is not None:
            self._start_said = True
            reading = self.trainer.start_reading.to_json(self.trainer.coverage)
            self.run.append_metrics({"step": 0, "reference": reading})
        if self.generate_every and state.global_step % self.generate_every == 0:
            self._generate(state)

    def _evaluate_start(self) -> None:
        """Where the accuracy at the start is not 0.5 (a policy agrees with its reference), or a loss is compared."""
        objective = self.trainer.objective
        if self.trainer.eval_dataset is None or set(FRESH) & set(objective.branches):
            return
        if not (objective.compares_pairs and objective.needs_reference):
            self.trainer.evaluate()

    def _read(self, step: int, probes: Sequence[Probe]) -> dict[str, Any]:
        """Readings by the names of the probes."""
        readings = {}
        for probe in probes:
            with self.budget.timed(probe.name):
                readings[probe.name] = probe.read(step)
            self._read_at[probe.name] = step
        return readings

    def _due(self, state: TrainerState) -> list[Probe]:
        """The probes to read at this log step: as often as the recipe says, or as the budget allows."""
        if state.global_step >= state.max_steps:
            return self.probes
        due = [probe for probe in self.probes if probe is not self.own or self.own.between]
        if self.every is not None:
            return due if state.global_step % self.every == 0 else []
        # the guard looks at every log step
        allowed = [(self.stop_on_drop and p is self.pairs) or self.budget.allows(p.name) for p in due]
        if self.trainer.accelerator.num_processes > 1:  # clocks differ, so the main process decides
            mine = [float(flag and self.trainer.accelerator.is_main_process) for flag in allowed]
            shared = self.trainer.sum_over_ranks(torch.tensor(mine, device=self.trainer.args.device))
            allowed = [flag > 0 for flag in shared.tolist()]
        return [probe for probe, flag in zip(due, allowed, strict=True) if flag]

    def _stop_on_drop(self, record: Mapping[str, Any], step: int) -> None:
        """Ends the run where chosen answers lost too much, if the recipe asks for that."""
        if not self.stop_on_drop or self.pairs is None or self.pairs.name not in record:
            return
        assert self.pairs.reading is not None
        chosen = self.pairs.reading.chosen.value
        if chosen <= -self.limit:
            raise Stopped(
                f"Stopped at step {step}: chosen answers lost {-chosen:.1f} nats since the start "
                f"(watch.chosen_drop_nats: {self.limit:g}). Saved checkpoints are kept. See: align explain "
                "suppression."
            )

    def _say_skipped(self) -> None:
        """What the budget left out."""
        costs = self.budget.summary()["probes"]
        left = [
            f"{cost['skipped']} of {cost['skipped'] + cost['readings']} of {probe.title}"
            for probe in self.probes
            if (cost := costs[probe.name])["skipped"]
        ]
        if left:
            self.echo(
                f"watch: readings left out to stay within {self.budget.share:.0%} of the training time (watch.budget): "
                f"{', '.join(left)}; watch.every: N reads at every Nth step, whatever it takes"
            )

    def _speed(self, state: TrainerState) -> dict[str, float]:
        now, tokens = time.monotonic(), self.trainer.train_tokens
        seconds = max(now - self._clock[0], 1e-9)
        rate = (tokens - self._clock[2]) * self.trainer.accelerator.num_processes / seconds
        per_step = (now - self._begun[0]) / max(state.global_step - self._begun[1], 1)
        self._clock = (now, state.global_step, tokens)
        return {"tokens_per_second": rate, "seconds_left": per_step * (state.max_steps - state.global_step)}

    def _generate(self, state: TrainerState) -> None:
        """Greedy continuations of the fixed prompts, one after the other so that nothing is padded.

        They end where the model's positions do; what the checkpoint says about sampling is left aside.
        """
        if not self.generate_every or not self.prompts:
            return
        tokenizer = self.trainer.processing_class
        model = self.trainer.model_wrapped
        was_training = model.training
        lines, lengths = [], []
        with for_generation(model, self.trainer.accelerator) as plain, torch.no_grad():
            plain.eval()
            reach, ends = positions(plain), end_ids(plain, tokenizer)
            for ids in self.prompts:
                prompt = torch.tensor([list(ids)], device=self.trainer.args.device)
                room = _NEW_TOKENS if reach is None else min(_NEW_TOKENS, reach - len(ids))
                with greedy(plain, ends, padding(tokenizer, ends), room) as settings:
                    out = plain.generate(
                        input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
                    )[0, len(ids) :]
                lengths.append(len(out))
                text = {"prompt": tokenizer.decode(ids), "text": tokenizer.decode(out, skip_special_tokens=True)}
                lines.append({"step": state.global_step, **text})
        model.train(was_training)
        self.run.append(SAMPLES, lines)
        self.run.append_metrics({"step": state.global_step, "generated_tokens": sum(lengths) / len(lengths)})
