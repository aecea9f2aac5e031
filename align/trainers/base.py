"""AlignTrainer: TRL's SFTTrainer with an objective, a reference and trees of branches in place of its loss and data."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from align.compat import SFTConfig, SFTTrainer, training_config
from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import longest_sequence
from align.data.batches.packing import Order, packs_for_budget
from align.data.tokens.tokenize import prepare
from align.engine.attention import PREFIX
from align.engine.reads import Hidden, feeds_last
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.objectives.base import Objective, sources_of
from align.reference.digest import model_digest
from align.reference.policy import ReferencePolicy, Strategy, choose, frozen
from align.reference.rows import check_anchors
from align.reference.store import LogProbStore, sequence_key
from align.reference.sync import SyncReference
from align.report.card import CardFacts, model_card
from align.runs.directory import write_atomically
from align.runs.launch import check_launch
from align.trainers.guard import Guard
from align.trainers.mixin import AlignMixin, order_seed
from align.versions import installed

Data = Dataset | IterableDataset

# how modeling files call the rates of what they draw at random while training
_NOISE = ("dropout", "_pdrop", "layerdrop", "jitter_noise")
# starts of an adapter that leave the model's own weights and the model's function as they were
_HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")


class AlignTrainer(AlignMixin, SFTTrainer):
    """Trains ``model`` on an objective over branches of prompts.

    ``model``, ``args``, ``train_dataset``, ``eval_dataset``, ``processing_class``, ``peft_config``, ``callbacks`` and
    ``optimizers`` mean what they mean in TRL. Data may be raw (any format that ``align check`` names) or prepared
    (``prompt_ids`` and a column ``<branch>_ids`` for each branch).

    Args:
        objective: what to minimise.
        reference: how the reference policy is kept (``auto``, ``adapter_off``, ``copy``, ``reload``); unused where the
            objective needs none.
        reference_sync: (every, mix): each ``every`` steps the reference moves to ``mix`` * policy + (1 - ``mix``) *
            reference (TR-DPO, arXiv 2404.09656); None keeps it where it was at the start.
        store_dir: folder of the reference log-prob store; None for no store.
        reference_rows: take the reference's log-probs from the rows, columns such as ``chosen_logp_initial`` for
            ``initial``; no reference model is kept then.
        max_length: most tokens of prompt and answer together, None for no limit.
        truncation: what happens to longer rows: ``drop``, ``keep_start``, ``keep_end`` or ``prompt_left``.
        order: data-set order by epoch, a pure function; shuffled by seed and epoch if None.
        max_tokens_per_microbatch: pack micro-batches up to this many tokens; the number of accumulation steps follows
            from it and the examples of a step stay what ``args`` say.

    Raises:
        UserError: for whatever the caller can mend, with a sentence.
    """

    _tag_names: ClassVar = ["trl", "align"]
    stores_reference: ClassVar = True  # whether rows come back, so that keeping their log-probs on disk is of use

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        objective: Objective,
        args: TrainingArguments | None = None,
        *,
        train_dataset: Data,
        eval_dataset: Data | dict[str, Data] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        reference: Strategy = "auto",
        reference_sync: tuple[int, float] | None = None,
        store_dir: str | Path | None = None,
        reference_rows: str | None = None,
        max_length: int | None = 1024,
        truncation: str = "drop",
        order: Order | None = None,
        max_tokens_per_microbatch: int | None = None,
    ) -> None:
        _check_kinds(objective, train_dataset, eval_dataset)
        args = _arguments(args, model)
        _refuse(args, peft_config)
        check_launch(args)
        set_seed(args.seed)
        model = _load(model, args)
        processing_class = processing_class or AutoTokenizer.from_pretrained(model.config._name_or_path)
        switch_dropout_off(model)
        self.objective, self.order = objective, order
        collator = self.make_collator()
        say: Callable[[str], Any] = print if args.process_index == 0 else lambda _: None

        def ready(data: Any) -> Any:
            if data is None or isinstance(data, dict):
                return data and {name: ready(part) for name, part in data.items()}
            limits = {"max_length": max_length, "truncation": truncation}
            return self.prepared(data, processing_class, order_seed(args), say, **limits)

        train_dataset, eval_dataset = ready(train_dataset), ready(eval_dataset)
        for rows in (*self.tables(train_dataset), *self.tables(eval_dataset)):
            _check_positions(model, rows, collator)
            check_anchors(objective, reference_rows, rows)
        self.token_budget = max_tokens_per_microbatch
        self._set_step(args, train_dataset, collator)
        self.digest: str | None = None
        if reference_sync is not None:
            store_dir = None  # what moves is not worth keeping
        self.reference_rows = reference_rows
        kept = self._keep_reference(
            model, args, reference, store_dir, peft_config, collator, train_dataset, eval_dataset
        )

        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        check_launch(self.accelerator)
        _leave_outputs_wide(self.accelerator)
        attach(self.model)
        self.engine = ScoringEngine(sharded=self._sharded())
        self.reference = None
        if kept is not None:
            strategy, frozen_model, store = kept
            self.reference = ReferencePolicy(self.engine, strategy, objective.reference_branches, frozen_model, store)
        self._start()
        self.add_callback(Guard(self))
        if reference_sync is not None:
            self.add_callback(SyncReference(self, *reference_sync))

    def _keep_reference(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        strategy: Strategy,
        store_dir: str | Path | None,
        peft_config: Any,
        collator: TreeCollator,
        *datasets: Any,
    ) -> tuple[Strategy, nn.Module | None, LogProbStore | None] | None:
        """Resolve the strategy while the policy still is what it was at the start, before anything wraps it."""
        if not self.objective.needs_reference or self.reference_rows is not None:
            return None
        fresh = peft_config is not None
        if fresh and getattr(peft_config, "init_lora_weights", True) not in _HARMLESS_STARTS:
            # pissa, olora and others take a part out of the weights: with the adapter off it would be missing
            if strategy == "adapter_off":
                raise UserError(
                    f"init_lora_weights={peft_config.init_lora_weights!r} changes the model's own weights, so "
                    "switching the adapter off does not give the model at the start: use reference.strategy: copy."
                )
            fresh = False
        resolved = choose(strategy, model, fresh)
        mixed = _compute_type(args, model)
        # rank 0's: with FSDP's efficient loading the others have no weights yet
        mine = model_digest(model, adapters=resolved != "adapter_off", compute_dtype=mixed)
        self.digest = gather_object([mine])[0]
        store = None
        # the store holds log-probs alone
        stores = self.stores_reference and not any(
            r.needs_reference or isinstance(r, Hidden) for r in self.objective.reads()
        )
        if store_dir is not None and stores:
            about = {"model": model.config._name_or_path, "digest": self.digest, "compute_dtype": mixed}
            store = LogProbStore(Path(store_dir), self.digest, about)
        if resolved == "adapter_off":
            return resolved, None, store
        if store is not None and all(gather_object([_complete(store, self.objective, datasets)])):
            return resolved, None, store
        if resolved == "reload":
            return resolved, _load_again(model), store
        return resolved, frozen(model), store

    def make_collator(self) -> TreeCollator:
        """What turns prepared rows into batches."""
        return TreeCollator(self.objective.branches, feed_last=feeds_last(self.objective.reads()))

    def prepared(self, data: Data, tokenizer: Any, seed: int, say: Callable[[str], Any], **limits: Any) -> Data:
        """Prepared rows as they are, raw ones tokenised with a word on what became of them."""
        columns = data.column_names or list(next(iter(data)))
        branches = sources_of(self.objective.branches)
        if all(f"{name}_ids" in columns for name in branches):
            return data
        rows, account = prepare(data, tokenizer, branches, **limits)
        for sentence in account.summary():
            say(sentence)
        return rows

    def tables(self, data: Any) -> list[Data]:
        """Every table of prepared rows that ``data`` stands for."""
        return list(data.values()) if isinstance(data, dict) else [] if data is None else [data]

    def _set_step(self, args: SFTConfig, train_dataset: Any, collator: TreeCollator) -> None:
        """Fix the examples of an optimizer step, and with a token budget the number of micro-batches that it takes."""
        world = args.world_size
        self.step_examples = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
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
        self, model_name: str | None = None, dataset_name: Any = None, tags: Any = None, verdict: Sequence[str] = ()
    ) -> None:
        """Write ``README.md`` of the output directory; called by the Trainer at every checkpoint."""
        if not self.is_world_process_zero():
            return
        base = self.model.config._name_or_path
        shown = ("learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "seed")
        facts = CardFacts(
            model_name or Path(self.args.output_dir).name,
            self.objective,
            base_model=None if not base or Path(base).exists() else base,
            adapter=hasattr(self.model, "peft_config"),
            data=[str(dataset_name)] if dataset_name else [],
            settings={"examples per step": self.step_examples, **{k: getattr(self.args, k) for k in shown}},
            versions={name: installed(name) for name in ("torch", "transformers", "trl", "peft")},
            verdict=verdict,
            tags=tuple(self._tag_names) + tuple([tags] if isinstance(tags, str) else tags or ()),
        )
        write_atomically(Path(self.args.output_dir) / "README.md", model_card(facts))

    def _sharded(self) -> bool:
        kind = self.accelerator.distributed_type
        return kind == "FSDP" or (kind == "DEEPSPEED" and self.accelerator.state.deepspeed_plugin.zero_stage == 3)


def switch_dropout_off(model: nn.Module) -> int:
    """Set the model's own dropout to 0 (an adapter's stays) and return how many modules that changed.

    The reference would otherwise differ from the policy at the start, and packed rows would draw other noise than
    padded ones.
    """
    changed = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0 and "lora_dropout" not in name:
            module.p, changed = 0.0, changed + 1
        for attribute, value in list(vars(module).items()):
            if isinstance(value, float) and value > 0 and attribute.endswith(_NOISE):
                setattr(module, attribute, 0.0)
                changed += 1
    return changed


def _check_kinds(objective: Any, *datasets: Any) -> None:
    """Sentences for the mistakes that end deep inside otherwise."""
    if not isinstance(objective, Objective):
        raise UserError(
            f"objective is {objective!r}; it must be a value such as align.DPO(beta=0.1). All: align list objectives."
        )
    for data in (d for entry in datasets for d in (entry.values() if isinstance(entry, dict) else [entry])):
        if data is not None and not isinstance(data, Dataset | IterableDataset):
            raise UserError(
                f"A data set is a {type(data).__name__}; it must be a datasets.Dataset or IterableDataset. "
                "Rows in a list: datasets.Dataset.from_list(rows)."
            )


def _arguments(args: TrainingArguments | None, model: Any) -> SFTConfig:
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        wide = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return training_config(output_dir=f"{Path(name).name or 'model'}-align", bf16=wide, report_to="none")
    if isinstance(args, SFTConfig):
        args = copy.copy(args)  # the caller may build a second trainer from it
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        return args
    if hasattr(args, "beta") or hasattr(args, "loss_type"):
        raise UserError(
            f"args is a {type(args).__name__}, which holds a loss of its own. Pass transformers.TrainingArguments or "
            "trl.SFTConfig, and the loss as objective=, for example objective=DPO(beta=0.1)."
        )
    values = {k: v for k, v in args.to_dict().items() if not (isinstance(v, str) and v.startswith("<"))}
    return training_config(**values)


def _refuse(args: SFTConfig, peft_config: Any) -> None:
    if args.torch_compile:
        raise UserError("torch_compile is not supported: shapes of packed rows change with every batch. Leave it off.")
    if args.packing or args.padding_free:
        raise UserError(
            "packing and padding_free are TRL's; rows are always packed here, without padding. Leave them out."
        )
    parallel = getattr(args, "parallelism_config", None)
    if parallel is not None and (parallel.cp_size > 1 or parallel.sp_size > 1 or parallel.tp_size > 1):
        raise UserError("sequence, context and tensor parallelism are not supported; use FSDP2 or ZeRO.")
    if peft_config is not None and getattr(peft_config, "is_prompt_learning", False):
        raise UserError(
            f"{type(peft_config).__name__} puts virtual tokens before every row, which packed trees cannot hold; "
            "use LoRA or another adapter of weights."
        )


def _load(model: Any, args: SFTConfig) -> Any:
    if not isinstance(model, str):
        return model
    options = {"dtype": "float32", "trust_remote_code": False, **(args.model_init_kwargs or {})}
    args.model_init_kwargs = None
    return AutoModelForCausalLM.from_pretrained(model, **options)


def _leave_outputs_wide(accelerator: Any) -> None:
    """Keep FSDP2's mixed precision from rounding log-probs to bfloat16 on their way out of the model."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and policy is not None and policy.output_dtype is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def _compute_type(args: SFTConfig, model: PreTrainedModel) -> str:
    """What forwards compute in: the arguments' mixed precision, else the launcher's, else the weights' own type."""
    mixed = "bf16" if args.bf16 else "fp16" if args.fp16 else os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return {"bf16": "bfloat16", "fp16": "float16"}.get(mixed, str(model.dtype).removeprefix("torch."))


def _check_positions(model: PreTrainedModel, dataset: Any, collator: TreeCollator) -> None:
    """Refuse rows for which the positional encoding depends on what else is in the batch."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {str(r.get("rope_type")) for r in (rope, *(v for v in rope.values() if isinstance(v, dict)))}
    found = kinds & {"dynamic", "longrope"}
    if not found:
        return
    limit = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", config.max_position_embeddings
    )
    longest = longest_sequence(dataset, collator) if hasattr(dataset, "__len__") else 0
    if longest > limit:
        raise UserError(
            f"The longest row has {longest} tokens, and beyond {limit} this model's rotary embedding "
            f"({', '.join(found)}) changes with the longest row of a batch. Set data.max_length to {limit} or less."
        )


def _load_again(model: PreTrainedModel) -> nn.Module:
    """The model that ``model`` was loaded from, frozen; under ZeRO-3 cut up as it is loaded."""
    source = model.config._name_or_path
    again = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=model.dtype,
        revision=getattr(model.config, "_commit_hash", None),
        attn_implementation=model.config._attn_implementation.removeprefix(PREFIX),
        trust_remote_code=False,
    )
    switch_dropout_off(again)
    mine, theirs = (model_digest(m, adapters=True, compute_dtype="") for m in (model, again))
    if not gather_object([mine == theirs])[0]:
        raise UserError(
            f"The policy is not what {source} holds, so the reference cannot be loaded from there: save the policy to "
            "a folder first and start from that folder. With an adapter on top, merge it first, or use FSDP2 or ZeRO-2."
        )
    return again.eval().requires_grad_(False)


def _complete(store: LogProbStore, objective: Objective, datasets: tuple) -> bool:
    """Whether the store holds every sequence of every data set, so that no reference need be kept in memory."""
    flat = [
        d for entry in datasets if entry is not None for d in (entry.values() if isinstance(entry, dict) else (entry,))
    ]
    needed = [f"{name}_ids" for name in sources_of(objective.reference_branches)]
    if not len(store) or any(not hasattr(d, "__len__") or not set(needed) <= set(d.column_names) for d in flat):
        return False
    collator = TreeCollator(objective.reference_branches)
    return all(
        sequence_key(tree, branch) in store
        for dataset in flat
        for row in dataset
        for tree in collator.example(row).trees
        for branch in tree.branches
    )
