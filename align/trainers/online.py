"""OnlineTrainer: completions drawn from the policy once per optimizer step, for all of its micro-batches."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.data.batches.collator import TreeCollator
from align.data.batches.packing import Order
from align.data.tokens.samples import Sample, prompt_key
from align.engine.layout import Branch, Example, Tree
from align.errors import UserError
from align.models.subject import positions
from align.objectives import Objective
from align.objectives.base import sources_of
from align.recipe.sampling import Rounds, Sampling, Select
from align.sampling.files import read_tables, sample_row, write_table
from align.sampling.sampler import Sampler
from align.trainers.base import AlignTrainer
from align.trainers.drawing import draw

FOLDER = "samples"

Row = tuple[Example, str | None]  # an example whose first tree gets the samples, and its prompt as JSON where known


@dataclass(frozen=True)
class Picked:
    """Places of the samples that are trained on, and scores (None: not scored), for each prompt."""

    kept: list[Sequence[int]]
    scores: list[list[float | None]]


class OnlineTrainer(AlignTrainer):
    """Fills the objective's branch ``branch`` with fresh samples of each row's prompt.

    Samples are drawn from the current weights, before the step's first micro-batch is scored; they depend on the seed,
    the step and the prompt, so neither batches nor processes nor a resume change them. ``<output_dir>/samples`` keeps
    all of them.

    Args:
        sampling: how completions are drawn.
    """

    branch: ClassVar[str]
    stores_reference = False  # fresh rows never come back

    def __init__(
        self, model: Any, objective: Objective, args: Any = None, *, sampling: Sampling, **kwargs: Any
    ) -> None:
        check_settings(sampling=sampling)
        branches = (
            objective.branches if isinstance(objective, Objective) else ("chosen",)
        )  # the base says what it must be
        if not sources_of(branches) and self.branch == "sample":
            raise UserError(
                "The objective reads fresh samples alone, which would only hold the model where it is: add a loss on "
                "pairs, as in hypo."
            )
        if sampling.server is not None:
            raise UserError(
                "sampling.server: a server has the weights of a checkpoint, but this objective needs those of the "
                "current step: leave it out, or train in rounds."
            )
        self.sampling = sampling
        super().__init__(model, objective, args, **kwargs)
        self.sampler = Sampler(sampling, self.processing_class, self.args.seed, say=self.say)
        self._unwritten: list[dict[str, Any]] = []
        self._check_room()
        self.add_callback(_Keep(self))

    def prepared(self, data: Any, tokenizer: Any, seed: int, say: Callable[[str], Any], **limits: Any) -> Any:
        """Rows with numbers, by which equal prompts get draws of their own."""
        rows: Any = super().prepared(data, tokenizer, seed, say, **limits)
        numbered = not isinstance(rows, Dataset) or "row" in rows.column_names
        return rows if numbered else rows.add_column("row", range(len(rows)))

    def _check_room(self) -> None:
        """Prompts that fill the model's positions would end the run at the step that has them."""
        limit, rows = positions(self.model), self.train_dataset
        if limit is None or not isinstance(rows, Dataset) or self.branch not in self.objective.branches:
            return
        lengths = pc.list_value_length(rows.with_format("arrow")["prompt_ids"])
        for place, length in enumerate(lengths.to_pylist()):
            if length >= limit:
                raise UserError(
                    f"Row {rows[place]['row']} has a prompt of {length} tokens, which leaves no room for an answer: "
                    f"the model reads {limit} at most. Set data.max_length lower, or leave the row out."
                )

    # ---- one optimizer step

    def completed(self, window: list[dict]) -> list[dict]:
        """The step's micro-batches with fresh samples in them."""
        if self.branch not in self.objective.branches:
            return window
        step = self.state.global_step + 1
        parts = [self.prompts(micro["tree"]) for micro in window]
        flat = [row for part in parts for row in part]
        drawn = self._draw(flat, step)
        picked = self.pick(flat, drawn)
        self._note(step, flat, drawn, picked)
        chosen = iter([[group[i] for i in kept] for group, kept in zip(drawn, picked.kept, strict=True)])
        out = []
        for part in parts:
            examples = [self._with(example, next(chosen)) for example, _ in part]
            batch = self.data_collator.pack([example for example in examples if example.trees[0].branches])
            out.append({"input_ids": batch.input_ids, "tree": batch})
        return out

    @abstractmethod
    def prompts(self, micro: Any) -> list[Row]:
        """The prompts of a micro-batch."""

    def pick(self, rows: Sequence[Row], drawn: list[list[Sample]]) -> Picked:
        """Which samples of each prompt are trained on; all of them unless overridden."""
        return Picked([range(len(group)) for group in drawn], [[None] * len(group) for group in drawn])

    def _draw(self, rows: Sequence[Row], step: int) -> list[list[Sample]]:
        prompts = [example.trees[0].prompt for example, _ in rows]
        keys = [prompt_key(prompt, example.row) for prompt, (example, _) in zip(prompts, rows, strict=True)]
        return draw(self, self.sampler, prompts, keys, step)

    def _with(self, example: Example, samples: Sequence[Sample]) -> Example:
        first, *others = example.trees
        fresh = tuple(Branch(self.branch, sample.ids, index=sample.index) for sample in samples)
        return replace(example, trees=(Tree(first.prompt, (*first.branches, *fresh)), *others))

    # ---- records

    def _note(
        self,
        step: int,
        rows: Sequence[Row],
        drawn: list[list[Sample]],
        picked: Picked,
    ) -> None:
        samples = [sample for group in drawn for sample in group]
        self.count("samples/tokens", [len(sample.ids) for sample in samples])
        self.count("samples/truncated", [float(sample.truncated) for sample in samples])
        for (example, text), group, kept, scores in zip(rows, drawn, picked.kept, picked.scores, strict=True):
            ids = [int(i) for i in example.trees[0].prompt]
            shown = json.dumps(self.processing_class.decode(ids), ensure_ascii=False) if text is None else text
            prompt = {"row": example.row, "prompt": shown, "prompt_ids": ids}
            for place, (sample, score) in enumerate(zip(group, scores, strict=True)):
                marked = "kept" if place in kept else ""
                self._unwritten.append(sample_row(step, prompt, sample, score=score, selected=marked))

    def count(self, name: str, values: Sequence[float]) -> None:
        """Add values to a metric that is logged as their mean over all ranks."""
        pair = torch.tensor([float(sum(values)), float(len(values))], device=self.args.device)
        self._meter.add({name: (pair[0], pair[1])})

    def write_samples(self) -> None:
        """Write what was drawn since the last call."""
        if not self._unwritten:
            return
        name = f"{self._unwritten[0]['step']:06d}-r{self.args.process_index}.parquet"
        write_table(Path(self.args.output_dir) / FOLDER / name, self._unwritten)
        self._unwritten = []

    def before_save(self) -> None:
        self.write_samples()

    def forget_samples_after(self, step: int) -> None:
        """Take back what was written beyond ``step``: a resumed run draws it again. Processes share the files out."""
        mine, world = self.accelerator.process_index, self.accelerator.num_processes
        for file in sorted((Path(self.args.output_dir) / FOLDER).glob("*-r*.parquet")):
            if int(file.stem.split("-r")[1]) % world != mine:  # there may have been more processes before
                continue
            rows = read_tables([file])
            kept = [row for row in rows if row["step"] <= step]
            if not kept:
                file.unlink()
            elif len(kept) < len(rows):
                write_table(file, kept)

    # ---- data

    def training_rows(self, dataset: Any, collator: TreeCollator, args: Any) -> tuple[Any, Sequence[int], Order]:
        """Rows with room for their samples, so that a token budget holds with them."""
        rows, lengths, order = super().training_rows(dataset, collator, args)
        if self.branch not in self.objective.branches:
            return rows, lengths, order
        room = self.room()
        if self.token_budget is not None and max(lengths) + room > self.token_budget:
            raise UserError(
                f"The longest row has {max(lengths)} tokens and its samples may have {room} more, but "
                f"train.max_tokens_per_microbatch is {self.token_budget}. Raise it, or lower sampling.max_new_tokens, "
                "sampling.samples or data.max_length."
            )
        return rows, [length + room for length in lengths], order

    def room(self) -> int:
        """Most positions that the samples of one row take in a pack."""
        return self.sampling.samples * self.sampling.max_new_tokens


def check_settings(**given: Any) -> None:
    """Refuse settings of another type than those of a recipe's section, which ``align`` exports by the same names."""
    kinds = {"sampling": Sampling, "select": Select, "rounds": Rounds}
    for name, value in given.items():
        if value is not None and not isinstance(value, kinds[name]):
            kind = kinds[name].__name__
            raise UserError(f"{name} is a {type(value).__name__}; it must be align.{kind}(...), see docs/config.md.")


class _Keep(TrainerCallback):
    """Writes samples at log steps and at the end."""

    def __init__(self, trainer: OnlineTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.forget_samples_after(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_log:
            self.trainer.write_samples()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.write_samples()
