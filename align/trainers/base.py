"""AlignTrainer: TRL's SFTTrainer with an objective, a reference and trees of branches in place of its loss and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from align.compat import SFTTrainer
from align.data.batches.packing import Order
from align.engine.scoring import attach
from align.models.ends import name_ends
from align.objectives.base import Objective
from align.reference.policy import ReferencePolicy, Strategy
from align.reference.sync import SyncReference
from align.runs.quiet import silent
from align.trainers.layers import Layers, compile_wanted
from align.trainers.reference import Kept, keep_reference
from align.trainers.tree import Data, TreeTrainer


class AlignTrainer(TreeTrainer, SFTTrainer):
    """Trains ``model`` on an objective over branches of prompts.

    ``model``, ``args``, ``train_dataset``, ``eval_dataset``, ``processing_class``, ``peft_config``, ``callbacks`` and
    ``optimizers`` mean what they mean in TRL. Data may be raw (any format that ``align check`` names) or prepared
    (``prompt_ids`` and a column ``<branch>_ids`` for each branch).

    Args:
        objective: what to minimise.
        reference: how the reference policy is kept (``auto``, ``adapter_off``, ``copy``); unused where the objective
            needs none.
        reference_sync: (every, mix): each ``every`` steps the reference moves to ``mix`` * policy + (1 - ``mix``) *
            reference (TR-DPO, arXiv 2404.09656); None keeps it where it was at the start.
        store_dir: folder of the reference log-prob store; None for no store.
        reference_rows: take the reference's log-probs from the rows, columns such as ``chosen_logp_initial`` for
            ``initial``; no reference model is kept then.
        reference_asked: keep the reference model also where the store holds every row: it will be asked about other
            text, such as the policy's own.
        max_length: most tokens of prompt and answer together, None for no limit.
        truncation: what happens to longer rows: ``drop``, ``keep_start``, ``keep_end`` or ``prompt_left``.
        order: data-set order by epoch, a pure function; shuffled by seed and epoch if None.
        max_tokens_per_microbatch: pack micro-batches up to this many tokens; the number of accumulation steps follows
            from it and the examples of a step stay what ``args`` say.
        layers: how the model's layers compute: fused by liger-kernel, compiled.
        template_arguments: what the chat template is given beside the conversation; ``strftime_now`` is the date. None
            keeps those of ``processing_class``; where it has none, the date is now. They are saved with the tokenizer.

    Raises:
        UserError: for whatever the caller can mend, with a sentence.
    """

    digest: str | None  # of the reference, where one is kept
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
        reference_asked: bool = False,
        max_length: int | None = 1024,
        truncation: str = "drop",
        order: Order | None = None,
        max_tokens_per_microbatch: int | None = None,
        layers: Layers | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        layers = layers or Layers()
        self.reference_rows = reference_rows
        ready = self.make_ready(
            model,
            objective,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            max_length=max_length,
            truncation=truncation,
            order=order,
            max_tokens_per_microbatch=max_tokens_per_microbatch,
            layers=layers,
            template_arguments=template_arguments,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        kept, self.digest = None, None
        if objective.needs_reference and reference_rows is None:
            # what moves, and rows that never come back, are not worth keeping on disk
            kept_in = store_dir if self.stores_reference and reference_sync is None else None
            data = (ready["train_dataset"], ready["eval_dataset"])
            model, args = ready["model"], ready["args"]
            kept = keep_reference(objective, model, args, reference, kept_in, peft_config, *data, asked=reference_asked)
            self.digest, self.coverage = kept.digest, kept.coverage
        super().__init__(**ready)
        self.check_ready()
        self.ends = name_ends(self.model, ready["processing_class"], self.tables(ready["train_dataset"]))
        attach(self.model)
        say = print if self.args.process_index == 0 else silent
        compile_wanted(layers, self.model, kept and kept.model, self._sharded(), say)
        self.get_started()
        self.reference = kept and self._policy_at_start(kept, moves=reference_sync is not None)
        if reference_sync is not None:
            self.add_callback(SyncReference(self, *reference_sync))

    def _policy_at_start(self, kept: Kept, *, moves: bool) -> ReferencePolicy:
        """The reference as it is kept; ``moves`` says whether it follows the policy."""
        branches = self.objective.reference_branches
        options = {"complete": kept.complete, "moves": moves}
        policy = ReferencePolicy(self.engine, kept.strategy, branches, kept.model, kept.store, **options)
        policy.shard(self.accelerator)
        return policy
