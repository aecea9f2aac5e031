"""Arguments of ``RoundTrainer`` as the recipe that they amount to: stages know recipes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.compat import loaded_whole
from align.errors import UserError
from align.judges.judge import Judging
from align.objectives import Objective, WeightedSum, name_of
from align.recipe import Recipe
from align.recipe.objective import Part
from align.recipe.sampling import Judge, Rounds, Sampling, Select
from align.recipe.sections import Lora
from align.recipe.train_keys import OURS, train_keys
from align.recipe.train_refused import REFUSED
from align.trainers.arguments import trl_arguments

# refused in recipes, and of no meaning or taken from elsewhere here
_LEFT = (
    "output_dir",
    "run_name",
    "seed",
    "do_eval",
    "local_rank",
    "max_length",
    "remove_unused_columns",
    "logging_nan_inf_filter",
)


def recipe_of(
    model: str,
    objective: Objective,
    args: Any,
    *,
    judge: Judging | Judge,
    sampling: Sampling,
    select: Select,
    rounds: Rounds,
    peft_config: Any,
    tokenizer: Any,
    max_length: int | None,
    template_arguments: Mapping[str, Any],
    prompts: str,
) -> Recipe:
    """The recipe; ``prompts`` is the file in the run directory that the prompts are written to.

    Raises:
        UserError: for arguments that rounds have no use for, and for what a recipe would be refused for.
    """
    if not isinstance(model, str):
        raise UserError(
            f"model is a {type(model).__name__}; every stage of a round loads it anew, so give its name or folder."
        )
    if not isinstance(objective, Objective):
        raise UserError(
            f"objective is {objective!r}; it must be a value such as align.INPO(). All: align list objectives."
        )
    if args is None:
        args = trl_arguments(None, model)
    output = Path(args.output_dir)
    raw: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9._+-]", "-", output.resolve().name).lstrip("._+-") or "rounds",
        "seed": args.seed,
        "model": {"id": model},
        "data": {
            "train": {"path": str((output / prompts).resolve())},
            "max_length": max_length,
            "template_arguments": dict(template_arguments),
        },
        "objective": _parts(objective),
        "train": _train(args),
        "sampling": _given(sampling),
        "judge": _given(judge if isinstance(judge, Judge) else _named(judge)),
        "select": _given(select),
        "rounds": _given(rounds),
        "output": str(output),
    }
    if peft_config is not None:
        raw["model"]["lora"] = _lora(peft_config)
    if tokenizer is not None:
        raw["model"]["tokenizer"] = str((output / "tokenizer").resolve())
    return Recipe.from_dict(raw, name="RoundTrainer")


def _given(section: Any) -> dict[str, Any]:
    return section.model_dump(exclude_unset=True)


def _named(judge: Any) -> Judge:
    """What the lock file calls a judge that was handed over."""
    return Judge(function=f"{type(judge).__module__}:{type(judge).__qualname__}")


def _parts(objective: Objective) -> tuple[Part, ...]:
    listed = objective.parts if isinstance(objective, WeightedSum) else ((objective, 1.0),)
    return tuple(Part(name_of(type(one)), weight, one) for one, weight in listed)


def _train(args: Any) -> dict[str, Any]:
    """Values of ``TrainingArguments`` under the names that recipes know; what recipes refuse must not be set."""
    # an object, since TRL's constructor fills in defaults, other ones in other versions. A launcher's settings, which
    # it would take for its own, stay those of `args`
    with loaded_whole():
        unset = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu, bf16=args.bf16, fp16=args.fp16)
    for name, cure in REFUSED.items():
        value = getattr(args, name, None)
        plain = isinstance(value, bool | int | float | str)
        if name not in _LEFT and plain and value != getattr(unset, name, value):
            raise UserError(f"args.{name} is {value!r}, which rounds do not take: {cure}")
    values: Mapping[str, Any] = args.to_dict()
    # a key of ours that transformers knows too has another default there, and counts once it is set
    return {name: values[name] for name in train_keys() if name in values and (values[name] or name not in OURS)}


def _lora(config: Any) -> dict[str, Any]:
    """A recipe's ``lora`` section for ``peft.LoraConfig``; other settings of it than recipes have are refused."""
    if isinstance(config, Lora):
        return _given(config)
    from peft import LoraConfig

    if type(config) is not LoraConfig:
        raise UserError(f"peft_config is a {type(config).__name__}; rounds take peft.LoraConfig.")
    targets = config.target_modules
    section = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "targets": sorted(targets) if isinstance(targets, set | list) else targets or "all-linear",
        "modules_to_save": list(config.modules_to_save or []),
    }
    from align.models.policy import lora_config

    made, given = lora_config(Lora(**section)).to_dict(), config.to_dict()
    known = ("target_modules", "task_type", "modules_to_save", "peft_version")
    if other := [key for key in given if key not in known and given[key] != made.get(key)]:
        raise UserError(f"peft_config sets {', '.join(other)}, which rounds do not take.")
    return section
