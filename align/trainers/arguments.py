"""What a caller in Python hands to a trainer: made into TRL's arguments, or refused with a sentence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from align.compat import SFTConfig, training_config
from align.errors import UserError
from align.objectives.base import Objective


def check_kinds(objective: Any, *datasets: Any) -> None:
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


def trl_arguments(args: TrainingArguments | None, model: Any) -> SFTConfig:
    """TRL's arguments; ours where none are given. Raises UserError for a configuration with a loss of its own."""
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


def refuse(args: SFTConfig, peft_config: Any) -> None:
    """Raises UserError for settings that packed trees of branches do not support."""
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
