"""What all our trainers are made of: rows made ready, a model made ready, the step, and a card.

A class of TRL's stands behind it: ``SFTTrainer`` for policies, ``RewardTrainer`` for reward models.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer import TRAINING_ARGS_NAME

from align.compat import Config, SFTConfig
from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import rows_with
from align.data.batches.packing import Order, packs_for_budget
from align.data.rows.sources import is_table
from align.data.tokens.arguments import keep_arguments, kept_arguments, unused_arguments
from align.data.tokens.tokenize import prepare
from align.engine.reads import feeds_last
from align.engine.scoring import ScoringEngine, causal_model
from align.errors import UserError
from align.export.folder import complete
from align.export.hub import push_now
from align.export.names import CARD
from align.export.source import find
from align.export.target import MAIN, Target
from align.models.limits import refuse_beyond
from align.models.quantised import adapter_values, check_quantised, keep_wide
from align.objectives.base import Objective, sources_of
from align.recipe.template_arguments import dated
from align.reference.rows import check_anchors
from align.report.card import CardFacts, model_card
from align.report.record import RunRecord
from align.runs.files import write_atomically
from align.runs.launch import check_launch
from align.runs.quiet import silent
from align.runs.result import MODEL
from align.trainers.arguments import check_kinds, check_steps, refuse, trl_arguments
from align.trainers.guard import Guard
from align.trainers.launched import Launched
from align.trainers.layers import Layers, fuse_layers
from align.trainers.mixin import AlignMixin, order_seed
from align.trainers.policy import (
    check_positions,
    check_trained,
    leave_outputs_wide,
    load,
    shard_embeddings_once,
    switch_dropout_off,
)
from align.versions import installed

Data = Dataset | IterableDataset


class TreeTrainer(AlignMixin):
    """The part of a constructor that comes before TRL's, the part that comes after it, and what both need."""

    config_kind: ClassVar[type[Config]] = SFTConfig
    reward: ClassVar[bool] = False  # whether it trains reward models
    _tag_names: ClassVar = ["trl", "align"]

    def make_ready(
        self,
        model: Any,
        objective: Objective,
        args: Any,
        *,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: Any,
        peft_config: Any,
        max_length: int | None,
        truncation: str,
        order: Order | None,
        max_tokens_per_microbatch: int | None,
        layers: Layers,
        template_arguments: Mapping[str, Any] | None,
        callbacks: list[TrainerCallback] | None,
        optimizers: tuple[Any, Any],
    ) -> dict[str, Any]:
        """What TRL's constructor is given. Raises UserError for whatever the caller can mend."""
        check_kinds(objective, train_dataset, eval_dataset)
        self._check_objective(objective)
        args = trl_arguments(args, model, self.config_kind)
        refuse(args, peft_config)
        check_launch(args)
        set_seed(args.seed)
        model = load(model, args, peft_config, reward=self.reward)
        processing_class = processing_class or AutoTokenizer.from_pretrained(model.config._name_or_path)
        switch_dropout_off(model)
        check_quantised(model)
        self._adapter_values = adapter_values(model)
        self.objective, self.order = objective, order
        collator = self.make_collator()
        say = print if args.process_index == 0 else silent
        _give_arguments(processing_class, template_arguments, say)
        how = (processing_class, order_seed(args), say)
        limits = {"max_length": max_length, "truncation": truncation}
        train_dataset, eval_dataset = (self._ready_rows(d, *how, **limits) for d in (train_dataset, eval_dataset))
        self._check_rows(model, collator, *self.tables(train_dataset), *self.tables(eval_dataset))
        self._check_balance(train_dataset, say)
        self.token_budget = max_tokens_per_microbatch
        self._set_step(args, train_dataset, collator)
        fuse_layers(model, args, layers, say)  # before a reference is copied, so that both compute alike
        return {
            "model": model,
            "args": args,
            "data_collator": collator,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "processing_class": processing_class,
            "callbacks": callbacks,
            "optimizers": optimizers,
            "peft_config": peft_config,
        }

    def check_ready(self) -> None:
        """Looks at what TRL's constructor has made. Raises UserError."""
        keep_wide(self.model, self._adapter_values)
        check_trained(self.model)
        check_launch(self.accelerator)
        leave_outputs_wide(self.accelerator)
        shard_embeddings_once(self.accelerator, self.model)

    def get_started(self) -> None:
        """The engine, the state of training and its guard."""
        self.engine = ScoringEngine(sharded=self._sharded())
        self._start()
        self.add_callback(Guard(self))
        self.add_callback(Launched(self))

    def _check_objective(self, objective: Objective) -> None:
        if objective.scores_answers and not self.reward:
            raise UserError(
                f"{type(objective).__name__} reads the scores of a reward model: use align.RewardModelTrainer."
            )

    def _check_rows(self, model: PreTrainedModel, collator: TreeCollator, *tables: Data) -> None:
        """Raises UserError for rows that the model cannot read, or that lack what the objective reads of them."""
        for rows in tables:
            refuse_beyond(model, rows, sources_of(self.objective.branches))
            check_positions(model, rows, collator)
            check_anchors(self.objective, self.reference_rows, rows)

    def _check_balance(self, rows: Data, say: Callable[[str], Any]) -> None:
        """Say what is wrong with how often the rows of an epoch have each branch."""
        branches = sources_of(self.objective.branches)
        if not isinstance(rows, Dataset) or not {f"{name}_ids" for name in branches} <= set(rows.column_names):
            return
        epoch = self.order(0) if self.order else slice(None)
        if found := self.objective.balance({name: int(rows_with(rows, name)[epoch].sum()) for name in branches}):
            say(f"warning: {found}")

    def make_collator(self) -> TreeCollator:
        """What turns prepared rows into batches."""
        objective = self.objective
        return TreeCollator(objective.branches, feed_last=feeds_last(objective.reads()), values=objective.row_values)

    def prepared(self, data: Data, tokenizer: Any, seed: int, say: Callable[[str], Any], **limits: Any) -> Data:
        """Prepared rows as they are, raw ones tokenised with a word on what became of them."""
        columns = data.column_names or list(next(iter(data)))
        branches = sources_of(self.objective.branches)
        if all(f"{name}_ids" in columns for name in branches):
            return data
        rows, account = prepare(data, tokenizer, branches, values=self.objective.row_values, **limits)
        for sentence in account.summary() if is_table(rows) else ():  # a stream says it as it is read
            say(sentence)
        return rows

    def _ready_rows(self, data: Any, *how: Any, **limits: Any) -> Any:
        """``prepared`` of every table in ``data``."""
        if data is None or isinstance(data, dict):
            return data and {name: self._ready_rows(part, *how, **limits) for name, part in data.items()}
        return self.prepared(data, *how, **limits)

    def tables(self, data: Any) -> list[Data]:
        """Every table of prepared rows that ``data`` stands for."""
        return list(data.values()) if isinstance(data, dict) else [] if data is None else [data]

    def _set_step(self, args: SFTConfig, train_dataset: Any, collator: TreeCollator) -> None:
        """Fix the examples of an optimizer step, and with a token budget the number of micro-batches that it takes."""
        world = args.world_size
        self.step_examples = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
        check_steps(args, train_dataset, self.step_examples)
        if self.token_budget is None:
            return
        if not hasattr(train_dataset, "__len__"):
            raise UserError("train.max_tokens_per_microbatch needs data of known size; with streaming, leave it out.")
        _, lengths, order = self.training_rows(train_dataset, collator, args)
        steps_per_epoch = max(1, len(order(0)) // self.step_examples)
        epochs = math.ceil(args.num_train_epochs if args.max_steps < 0 else args.max_steps / steps_per_epoch)
        packs = packs_for_budget(lengths, self.step_examples, order, epochs, self.token_budget, world)
        args.gradient_accumulation_steps = packs // world

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: Any = None,
        tags: Any = None,
        verdict: Sequence[str] = (),
        record: RunRecord | None = None,
    ) -> None:
        """Write ``README.md`` of the output directory; called by the Trainer at every checkpoint.

        At its end a run gives the lines of its ``verdict``, and its ``record``.
        """
        if not self.is_world_process_zero():
            return
        base = self.model.config._name_or_path
        shown = ("learning_rate", "lr_scheduler_type", "warmup_steps", "seed")
        chosen = [(name, getattr(self.args, name)) for name in shown]
        done = {"steps": self.state.global_step, "epochs": round(self.state.epoch or 0, 2)}
        facts = CardFacts(
            model_name or Path(self.args.output_dir).name,
            self.objective,
            base_model=None if not base or Path(base).exists() else base,
            adapter=hasattr(self.model, "peft_config"),
            data=[str(dataset_name)] if dataset_name else [],
            settings={
                **done,
                "examples per step": self.step_examples,
                **{name: getattr(value, "value", value) for name, value in chosen},
            },
            versions={name: installed(name) for name in ("torch", "transformers", "trl", "peft")},
            verdict=verdict,
            record=record,
            tags=tuple(self._tag_names) + tuple([tags] if isinstance(tags, str) else tags or ()),
        )
        write_atomically(Path(self.args.output_dir) / "README.md", model_card(facts))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers; whole weights also where FSDP2 keeps checkpoints in pieces."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled and not _internal_call else None
        if plugin is None:
            return super().save_model(output_dir, _internal_call)
        kept = plugin.state_dict_type
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            plugin.set_state_dict_type(kept)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As in transformers, with the generation config beside an adapter, too, and no pickle of the arguments."""
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)  # nobody should have to load it
        inner = causal_model(self.model)
        if hasattr(self.model, "peft_config") and inner.can_generate():  # it may name other ends than the model's own
            inner.generation_config.save_pretrained(folder)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **card: Any,
    ) -> str:
        """Push the model as it is now: what ``align push`` takes along of a run, and private unless asked otherwise.

        The signature is transformers'. ``hub_model_id`` of the arguments names the repository, by default the name of
        the output directory; ``hub_private_repo=False`` makes it public. Every process calls it.

        Args:
            revision: a branch, made where there is none.
            card: for ``create_model_card``, such as ``model_name`` and ``tags``.

        Returns:
            The address of the repository.

        Raises:
            UserError: where the Hub refuses.
        """
        if not blocking:
            raise UserError("push_to_hub(blocking=False): the push is done when it returns; leave blocking out.")
        top = Path(self.args.output_dir)
        made = top / f"{MODEL}.new"  # beside what an earlier push left, which may be of other kinds
        if self.is_world_process_zero():
            shutil.rmtree(made, ignore_errors=True)  # of one that was killed
        self.accelerator.wait_for_everyone()
        self.save_model(str(made))
        if not self.is_world_process_zero():
            return ""
        shutil.rmtree(top / MODEL, ignore_errors=True)
        made.rename(top / MODEL)
        self.create_model_card(**card)
        complete(top / MODEL, find(top / MODEL), card=(top / CARD).read_text(encoding="utf-8"))
        private = self.args.hub_private_repo is not False
        target = Target(self.args.hub_model_id or top.resolve().name, private, revision or MAIN, message=commit_message)
        return push_now(top / MODEL, target, self.echo, token=token or self.args.hub_token)

    def _sharded(self) -> bool:
        kind = self.accelerator.distributed_type
        return kind == "FSDP" or (kind == "DEEPSPEED" and self.accelerator.state.deepspeed_plugin.zero_stage == 3)


def _give_arguments(tokenizer: Any, arguments: Mapping[str, Any] | None, say: Callable[[str], Any]) -> None:
    """Let the tokenizer hold the template arguments of this run, or those that it was saved with."""
    if arguments is not None or not kept_arguments(tokenizer):
        keep_arguments(tokenizer, dated(arguments or {}))
    for sentence in unused_arguments(tokenizer, arguments or {}):
        say(f"warning: {sentence}")
