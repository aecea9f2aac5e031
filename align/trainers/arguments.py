"""What a caller in Python hands to a trainer: made into TRL's arguments, or refused with a sentence."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import TrainingArguments, get_scheduler

from align.compat import Config, RewardConfig, SFTConfig, SFTTrainer, fixed, training_config
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


def trl_arguments(args: TrainingArguments | None, model: Any, kind: type[Config] = SFTConfig) -> Any:
    """TRL's arguments, one of ``kind``; ours where none are given.

    Raises UserError for a configuration with a loss of its own.
    """
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        wide = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return training_config(kind, output_dir=f"{Path(name).name or 'model'}-align", bf16=wide, report_to="none")
    if getattr(args, "center_rewards_coefficient", None) is not None:
        raise UserError(
            "args has a center_rewards_coefficient; give it to the loss: objective=BradleyTerry(center=0.01)."
        )
    if isinstance(args, kind):
        return fixed(copy.copy(args))  # the caller may build a second trainer from it
    if hasattr(args, "beta") or (hasattr(args, "loss_type") and not isinstance(args, SFTConfig)):
        raise UserError(
            f"args is a {type(args).__name__}, which holds a loss of its own. Pass transformers.TrainingArguments or "
            "trl.SFTConfig, and the loss as objective=, for example objective=DPO(beta=0.1)."
        )
    values = {k: v for k, v in args.to_dict().items() if not (isinstance(v, str) and v.startswith("<"))}
    others = {*SFTConfig.__dataclass_fields__, *RewardConfig.__dataclass_fields__} - set(kind.__dataclass_fields__)
    return training_config(kind, **{key: value for key, value in values.items() if key not in others})


def _check_optimizer(args: SFTConfig) -> None:
    try:
        SFTTrainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, RuntimeError, ValueError) as error:
        if "pass a model" not in str(error):  # some look at its layers, and it is not here yet
            raise UserError(f"train.optim: {_name(args.optim)} cannot be used here ({_one_line(error)}).") from error


def _check_schedule(args: SFTConfig) -> None:
    """Make the schedule for an optimizer of one weight: what it lacks, or cannot take, shows there."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    name = _name(args.lr_scheduler_type)
    steps = args.max_steps if args.max_steps > 0 else 10
    try:
        schedule = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
        if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            schedule.lr_lambdas[0](1)
    except ZeroDivisionError as error:
        raise UserError(
            f"train.lr_scheduler_type: {name} has no step left behind a warm-up of {args.get_warmup_steps(steps)} of "
            f"{steps} steps: lower train.warmup_steps, or train longer."
        ) from error
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(
            f"train.lr_scheduler_type: {name} cannot be made ({_one_line(error)}). What it needs goes into "
            "train.lr_scheduler_kwargs, a mapping such as {min_lr_rate: 0.1} or {num_decay_steps: 100}."
        ) from error


def _name(choice: Any) -> str:
    return str(getattr(choice, "value", choice))


def _one_line(error: Exception) -> str:
    """An error's words as part of a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def check_steps(args: SFTConfig, rows: Any, examples: int) -> None:
    """Refuse rows that fill no step while an incomplete one is dropped. Raises UserError.

    Args:
        examples: of one optimizer step.
    """
    if args.dataloader_drop_last and hasattr(rows, "__len__") and len(rows) < examples:
        raise UserError(
            f"train.dataloader_drop_last: there are {len(rows)} rows and a step takes {examples}, so that no step is "
            "complete and all rows would be dropped: leave it out, or lower train.per_device_train_batch_size."
        )


def check_best_metric(args: TrainingArguments, metrics: Iterable[str], eval_dataset: Any) -> None:
    """Refuse a metric for the best model that no evaluation yields. Raises UserError.

    Args:
        metrics: names that the objective reports.
    """
    wanted = args.metric_for_best_model
    if wanted is None or eval_dataset is None:
        return
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else [""]
    known = [start + name for start in sets for name in ("loss", *sorted(metrics))]
    if wanted.removeprefix("eval_") not in known:
        raise UserError(f"train.metric_for_best_model: no evaluation yields {wanted!r}; it yields {', '.join(known)}.")


def refuse(args: SFTConfig, peft_config: Any = None) -> None:
    """Raises UserError for settings that packed trees do not support, or that would fail once the model is loaded."""
    _check_optimizer(args)
    _check_schedule(args)
    if args.activation_offloading and args.device.type == "cpu":
        raise UserError(
            "train.activation_offloading moves activations to the CPU, and this run computes there already: leave it "
            "out."
        )
    if args.push_to_hub:
        raise UserError(
            "push_to_hub in args would upload checkpoints while the model trains. Leave it out there and call "
            "trainer.push_to_hub() at the end; in a recipe it is output.push."
        )
    if args.auto_find_batch_size:
        raise UserError(
            "auto_find_batch_size would restart the run with another plan: leave it out. Where memory runs out the run "
            "says which batch is likely to fit."
        )
    if args.torch_compile:
        raise UserError(
            "torch_compile in args would compile the model as a whole, sampling included. Leave it out there and give "
            "the trainer layers=Layers(torch_compile=True); in a recipe it is train.torch_compile."
        )
    if args.use_liger_kernel:
        raise UserError(
            "use_liger_kernel in args would let TRL change the model a second time, and its loss. Leave it out there "
            "and give the trainer layers=Layers(use_liger_kernel=True); in a recipe it is train.use_liger_kernel."
        )
    if getattr(args, "packing", False) or getattr(args, "padding_free", False):
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
