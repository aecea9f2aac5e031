"""Reward models as trainers and judges load them: sequence classifiers with one label."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from align.data.rows.sources import quiet_hub
from align.errors import UserError, loading
from align.models.load import SAFE, check_labels, first_line, made_as
from align.runs.models import hub_options
from align.runs.quiet import unreported


def check_classifier(model: Any) -> None:
    """Refuse a model in memory that is no reward model. Raises UserError."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    kind = type(inner).__name__
    if "SequenceClassification" not in kind:
        raise UserError(
            f"{kind} has no head that scores answers: load the model with "
            "transformers.AutoModelForSequenceClassification.from_pretrained(name, num_labels=1), or give its name."
        )
    if inner.config.num_labels != 1:
        raise UserError(
            f"This {kind} gives {inner.config.num_labels} numbers (num_labels); a reward model gives one: num_labels=1."
        )


def read_reward_model(name: str, **options: Any) -> PreTrainedModel:
    """The reward model that a folder or a Hub id holds, with ``options`` of transformers.

    A language model or an encoder gets a new head, drawn from torch's generator: seed it first. Its ``new_weights`` are
    the names of what was drawn.

    Raises:
        UserError: where there is none, it has several labels, or weights of more than the head are missing.
    """
    shared: Any = hub_options(name)

    def not_loaded(error: Exception) -> str:
        return (
            f"model.id: {name!r} cannot be loaded as a reward model ({first_line(error)}). It must be a run, a folder "
            "with config.json and safetensors, or a Hub id that can be reached (HF_HUB_OFFLINE is honoured)."
        )

    with loading(not_loaded), quiet_hub():
        config = AutoConfig.from_pretrained(name, revision=options.get("revision"), trust_remote_code=False, **shared)
        check_labels("model.id", name, config)
        with unreported():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name, **{**SAFE, **shared, **options, "num_labels": 1, "output_loading_info": True}
            )
    backbone = f"{model.base_model_prefix}."
    missing = sorted(info["missing_keys"])
    if lost := [weight for weight in missing if weight.startswith(backbone) and "pooler" not in weight]:
        raise UserError(
            f"model.id: {name!r} has no weights for {', '.join(lost[:3])}, which would be random; name another model."
        )
    if missing and "SequenceClassification" in made_as(config):
        raise UserError(
            f"model.id: {name!r} says that it is a {made_as(config)}, but has no weights for "
            f"{', '.join(missing[:3])}; name a whole one, or the model under it."
        )
    model.new_weights = missing
    return model


def check_new_weights(model: Any) -> None:
    """Refuse an adapter beside which something is new and random that is not saved with it, such as a pooler.

    Raises:
        UserError: with the modules that are to be trained and saved in full.
    """
    new = getattr(model.get_base_model(), "new_weights", ())
    saved = {name for config in model.peft_config.values() for name in getattr(config, "modules_to_save", None) or ()}
    if lost := [name for name in new if not saved & set(name.split("."))]:
        backbone = f"{model.get_base_model().base_model_prefix}."
        modules = ", ".join(dict.fromkeys(name.removeprefix(backbone).split(".")[0] for name in lost))
        raise UserError(
            f"The checkpoint has no weights for {', '.join(lost[:3])}, which are new and random, and a model with an "
            f"adapter saves the adapter alone: name their modules in modules_to_save, [{modules}] (in a recipe "
            "model.lora.modules_to_save), or train all weights."
        )
