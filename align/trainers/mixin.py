"""What makes a TRL trainer one of ours: objective, engine and reference behind the Trainer's public overrides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import row_lengths
from align.data.batches.packing import Order, shuffled
from align.engine.layout import TreeBatch
from align.engine.probe import kernels_to_try, probe
from align.engine.reads import AnyRead, Hidden, Score
from align.engine.score_probe import probe_scores
from align.engine.scores import Scores
from align.engine.scoring import ScoringEngine
from align.errors import Stopped, of_this_process
from align.objectives.base import Objective, Terms
from align.reference.policy import ReferencePolicy
from align.runs.memory import answered
from align.runs.signals import SIGNALS
from align.trainers.arguments import check_best_metric
from align.trainers.checkpoints import CheckpointMixin
from align.trainers.coverage import Coverage
from align.trainers.ending import Ending
from align.trainers.gradients import uncut
from align.trainers.loaders import eval_loader, train_loader
from align.trainers.memory import Watermark, in_evaluation, in_step, outside
from align.trainers.meter import Meter
from align.trainers.returned import terms_of
from align.trainers.running import RunningMeans
from align.trainers.start import StartReading, compare_at_start, compute_dtype


class AlignMixin(CheckpointMixin):
    """Overrides of the public Trainer methods; mixed into TRL trainers.

    A trainer sets ``objective``, ``engine``, ``reference`` (or None) and ``order`` (data-set order by epoch, or None)
    before training starts.
    """

    # the loss is divided by the weights of the whole optimizer step, so the Trainer must not divide again
    loss_is_scaled_for_ga = True

    objective: Objective
    engine: ScoringEngine
    reference: ReferencePolicy | None
    coverage: Coverage | None = None  # what the reference store holds of the data sets
    reference_rows: str | None = None  # the anchor that stands for the reference, where rows bring its log-probs along
    order: Order | None = None
    token_budget: int | None = None
    ends: Sequence[str] = ()  # what is to be said of the tokens that answers end in
    step_examples: int  # examples of one optimizer step, all ranks together

    def _start(self) -> None:
        """State of one trainer; called at the end of its constructor."""
        self._window: dict[str, Any] = {}
        self._missing: list[bool] = []
        self._meter, self._eval_meter = Meter(), Meter()
        self._eval_prefix: str | None = None
        self._ready = self._metric_checked = False
        self._finite: Tensor | None = None
        self.train_tokens = 0  # positions of this rank's training micro-batches
        self.watermark = Watermark()
        self.running = RunningMeans(self.sum_over_ranks)
        self.add_callback(self.running)
        self.ending = Ending()
        self.add_callback(self.ending)
        self._start_checkpoints()
        self.echo: Callable[[str], Any] = print
        self.start_gap: float | None = None
        self.start_reading: StartReading | None = None

    # ---- memory that runs out is answered with numbers

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises ``DoesNotFit`` where memory runs out, ``UserError`` where a gradient is lost."""
        with uncut(), answered(lambda error: outside(self, error)):
            return super().train(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch."""
        positions, device = inputs["tree"].input_ids.shape[1], self.args.device
        self.watermark.begin(device, positions)
        with answered(lambda error: in_step(self, error, positions)):
            loss = super().training_step(model, inputs, *args, **kwargs)
        self.watermark.end(device, positions)
        return loss

    # ---- the five overrides

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """The micro-batches of one optimizer step, and what its loss is divided by, added up over all ranks."""
        with of_this_process():  # each has rows of its own
            samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            samples = self.completed(samples) if samples else samples
        if samples:
            batches = [s["tree"] for s in samples]
            self._window = self._divisors(batches, device)
            step = torch.tensor([0.0, float(self.accelerator.is_main_process)], device=device)
            self._meter.add({"loss": (step[0], step[1])})
            stored = self.reference is not None and self.reference.complete
            self._missing = [False] * len(batches) if stored else self.needs_reference_pass(batches)
        return samples, None

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share of the optimizer step's loss."""
        batch = inputs["tree"].to(self.args.device, non_blocking=True)
        self.get_ready(model, batch)
        self.train_tokens += batch.input_ids.shape[1]
        compute = self._missing.pop(0) if self._missing else True
        policy, terms = self.score(model, batch, compute_reference=compute)
        if not self._metric_checked:
            self._metric_checked = True
            check_best_metric(self.args, terms.metrics, self.eval_dataset)
        self._meter.add(terms.metrics)
        self.running.add(terms.running)
        parts = [t.weight * t.losses.sum() / self._window[t.unit] for t in terms.losses]
        loss = torch.stack(parts).sum()
        if policy.aux_loss is not None:
            loss = loss + policy.aux_loss * (batch.units["examples"] / self._window["examples"])
        self._meter.add({"loss": (loss, loss.new_zeros(()))})  # transformers' own sum is in no checkpoint
        finite = torch.isfinite(loss.detach())
        self._finite = finite if self._finite is None else self._finite & finite
        # gradients are averaged over ranks, but the divisor is already that of all ranks
        loss = loss * self.accelerator.num_processes
        return (loss, {"policy": policy}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Adds one micro-batch to the evaluation's sums; nothing is gathered by row."""
        positions = inputs["tree"].input_ids.shape[1]
        with answered(lambda error: in_evaluation(self, error, positions)), torch.no_grad():
            batch = inputs["tree"].to(self.args.device)
            self.get_ready(model, batch)
            missing = self.needs_reference_pass([batch])
            policy, terms = self.score(model, batch, compute_reference=missing[0])
            self.look_at(policy)
        self._eval_meter.add(terms.metrics)
        for i, term in enumerate(terms.losses):
            total = term.weight * term.losses.sum()
            self._eval_meter.add({f"term {i}": (total, total.new_full((), _divisor(batch, term.unit)))})
        return None, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds our metrics to what is logged; one collective."""
        if self._eval_prefix is not None and any(k.startswith(self._eval_prefix) for k in logs):
            means = self._eval_meter.read(self.sum_over_ranks)
            parts = [means.pop(key) for key in sorted(means) if key.startswith("term ")]
            logs[f"{self._eval_prefix}_loss"] = sum(parts)
            logs.update({f"{self._eval_prefix}_{key}": value for key, value in means.items()})
        elif "loss" in logs and self._meter:
            logs.update(self._meter.read(self.sum_over_ranks))
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics over a prepared data set; they do not depend on the batch size or the number of ranks."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            out: dict[str, float] = {}
            for name, part in dataset.items():
                out |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return out
        self._eval_meter, self._eval_prefix = Meter(), metric_key_prefix
        try:
            return super().evaluate(dataset, ignore_keys, metric_key_prefix)
        finally:
            self._eval_prefix = None

    def sums(self) -> dict[str, Any]:
        return {"meter": self._meter.state()}

    def take_up(self, sums: Sequence[Mapping[str, Any]]) -> None:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        self._meter.restore([one["meter"] for one in sums], rank, world, self.args.device)

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        """Planned packs of this rank; see ``align.data.batches.packing``."""
        return train_loader(self)

    def training_rows(self, dataset: Any, collator: TreeCollator, args: Any) -> tuple[Any, Sequence[int], Order]:
        """What an epoch reads: rows by number, positions by number, and the numbers of an epoch in order."""
        lengths = row_lengths(dataset, collator)
        return dataset, lengths, self.order or shuffled(len(lengths), order_seed(args))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Consecutive rows, equally many packs on every rank."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return eval_loader(self, self.eval_dataset[dataset] if isinstance(dataset, str) else dataset)

    # ---- scoring

    def score(self, model: nn.Module, batch: TreeBatch, *, compute_reference: bool = True) -> tuple[Scores, Terms]:
        """Scores under the policy and the objective's terms for a batch on the device."""
        reads = self.objective.reads()
        policy, reference = self.policy_and_reference(model, batch, reads, compute_reference=compute_reference)
        return policy, terms_of(self.objective, policy, reference)

    def policy_and_reference(
        self, model: nn.Module, batch: TreeBatch, reads: tuple[AnyRead, ...], *, compute_reference: bool = True
    ) -> tuple[Scores, Scores | None]:
        """What the objective is called with: scores under the policy with running means, and under the reference."""
        keep = any(read.needs_reference for read in reads)
        reference = None
        if self.reference is not None:
            # the reference first: its activations are gone before the policy's graph is built
            reference = self.reference.scores(
                model,
                batch,
                compute=compute_reference,
                keep=keep,
                autocast=self.accelerator.autocast,
                hidden=tuple(read for read in reads if isinstance(read, Hidden)),
            )
        policy = self.engine(model, batch, reads, reference=reference.head if keep and reference else None)
        if self.reference_rows is not None and self.objective.needs_reference:
            reference = policy.anchored(self.reference_rows)
        return replace(policy, running=self.running.means), reference

    def look_at(self, policy: Scores) -> None:
        """What a trainer adds up of the scores of an evaluation, beside the objective's metrics."""

    def completed(self, window: list[dict]) -> list[dict]:
        """The micro-batches of one optimizer step, with what can only be added now that the policy is known."""
        return window

    def _divisors(self, batches: list[TreeBatch], device: torch.device) -> dict[str, Any]:
        """What each unit of the loss is divided by in this step, added up over ranks and 1 at least.

        Numbers, or with several ranks tensors [] that are not looked at, so that nobody waits for the device.
        """
        units = tuple(dict.fromkeys((*self.objective.units, "examples")))
        mine = [sum(_divisor(b, u) for b in batches) for u in units]
        if self.accelerator.num_processes == 1:
            return {unit: max(value, 1.0) for unit, value in zip(units, mine, strict=True)}
        # float32, since some devices have no float64; token counts of a step are far below 2^24
        mine.append(float(bool(SIGNALS.asked)))
        *total, asked = self.sum_over_ranks(torch.tensor(mine).to(device, non_blocking=True)).unbind()
        self.ending.begin(asked)
        return {unit: value.clamp(min=1.0) for unit, value in zip(units, total, strict=True)}

    def needs_reference_pass(self, batches: list[TreeBatch]) -> list[bool]:
        """For each batch, whether any rank must compute reference rows of it."""
        if self.reference is None:
            return [False] * len(batches)
        if self.reference.store is None:
            return [True] * len(batches)
        missing = [self.reference.missing(b) for b in batches]
        if self.accelerator.num_processes == 1:
            return missing
        flags = torch.tensor([float(flag) for flag in missing], device=self.args.device)
        return [bool(x) for x in self.sum_over_ranks(flags).tolist()]

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x, "sum") if self.accelerator.num_processes > 1 else x

    def get_ready(self, model: nn.Module, batch: TreeBatch | None = None) -> None:
        """Probe the model as it is wrapped, and compare policy and reference on ``batch``; each of them once."""
        if not self._ready:
            self._ready = True
            self._probe(model)
            for sentence in self.ends:
                self.say(sentence)
        if batch is not None and self.reference is not None and self.start_gap is None:
            self.start_gap = math.nan  # after a resume the policy is no longer what it was
            if self.state.global_step == 0:
                self.start_reading = compare_at_start(self, model, batch)
                self.start_gap = self.start_reading.gap
                self.say(self.start_reading.sentence(self.coverage, stores=self.reference.store is not None))

    def _probe(self, model: nn.Module) -> None:
        def agree(flag: bool) -> bool:
            return self.sum_over_ranks(torch.tensor([float(not flag)], device=self.args.device)).item() == 0

        # a model that nobody has wrapped yet computes in another type than it will be trained in
        how = (self.engine, model, self.args.device, agree)
        with self.accelerator.autocast():
            if self.objective.scores_answers:
                found = probe_scores(*how, compute_dtype(self), kernels_to_try(*how, (Score(),)))
                self.say(f"scoring: {found.sentence()}")
            else:
                self.say(probe(*how, compute_dtype(self)).sentence())
        if self.reference is not None and (sentence := self.reference.prepare(self.accelerator)):
            self.say(sentence)

    # ---- people

    def say(self, sentence: str) -> None:
        """Print a sentence once, on the main process."""
        if self.accelerator.is_main_process:
            self.echo(sentence)

    def flush_reference(self) -> None:
        """Write computed reference rows to the store's folder, if there is one."""
        if self.reference is not None and self.reference.store is not None:
            self.reference.store.flush()

    def check_finite(self, *, weights: bool = False) -> None:
        """End the run, on all ranks, if a loss since the last call or (``weights``) a weight is not finite.

        Raises:
            Stopped: on every rank.
        """
        finite = torch.ones((), dtype=torch.bool, device=self.args.device) if self._finite is None else self._finite
        self._finite = None
        if weights:
            for parameter in self.model.parameters():
                if parameter.requires_grad and parameter.numel():
                    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                    finite = finite & local.detach().isfinite().all()
        if self.sum_over_ranks((~finite).float().reshape(1)).item():
            self.stop_not_finite("loss" if not weights else "loss or a weight")

    def stop_not_finite(self, what: str) -> NoReturn:
        """Raise ``Stopped`` with what to do."""
        raise Stopped(
            f"The {what} was not finite at or before step {self.state.global_step}. Nothing was saved after it: "
            "checkpoints in the run directory, if there are any, are good. Lower train.learning_rate, set "
            "train.max_grad_norm, or use bfloat16 or float32 instead of float16, and start a new run (another name=)."
        )


def _divisor(batch: TreeBatch, unit: str) -> float:
    """What a batch adds to the divisor of a ``Term.unit``."""
    return sum(batch.units.get(part, 0.0) for part in unit.split("+"))


def order_seed(args: Any) -> int:
    """The seed of the rows' order."""
    return args.seed if args.data_seed is None else args.data_seed
