"""The model that a trainer is given, made ready to be trained on packed trees."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from align.compat import Config
from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import longest_sequence
from align.errors import UserError
from align.models.look import check_targets
from align.models.policy import read_model
from align.models.reward import check_classifier, check_new_weights, read_reward_model
from align.runs.models import located

_LOAD_ADAPTER = (
    "An adapter is loaded for training with peft.PeftModel.from_pretrained(model, folder, is_trainable=True), in a "
    "recipe with model.lora.adapter."
)
# how modeling files call the rates of what they draw at random while training
_NOISE = ("dropout", "_pdrop", "layerdrop", "jitter_noise")


def load(model: Any, args: Config, peft_config: Any, *, reward: bool = False) -> Any:
    """The model itself, or the one that a name stands for. Raises UserError where it cannot take the adapter."""
    if isinstance(model, str):
        options = {"dtype": "float32", **(args.model_init_kwargs or {})}
        args.model_init_kwargs = None
        model = (read_reward_model if reward else read_model)(located(model, None), **options)
    if reward:
        check_classifier(model)
        kind = getattr(peft_config, "task_type", None)
        if peft_config is not None and kind != "SEQ_CLS":
            raise UserError(
                f"peft_config has the task_type {getattr(kind, 'value', kind)}, with which the head that scores would "
                "not be trained: set task_type='SEQ_CLS'."
            )
    check_targets(model, peft_config)
    return model


def check_trained(model: nn.Module) -> None:
    """Refuse a model of which nothing is trained, or of which something is trained that is not saved.

    Raises:
        UserError: with the way to load an adapter so that it is trained.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"transformers has put an adapter on this model, which is not trained on. {_LOAD_ADAPTER}")
    if not trained:
        raise UserError(
            f"Nothing would be trained: no weight of the model takes a gradient. {_LOAD_ADAPTER} "
            "For other models: model.requires_grad_(True)."
        )
    if not hasattr(model, "peft_config"):
        return  # all of it is saved
    from peft import get_peft_model_state_dict

    adapted: Any = model
    whole = model.state_dict(keep_vars=True)
    saved: set[int] = set()
    for adapter in adapted.peft_config:
        part = get_peft_model_state_dict(adapted, whole, adapter, save_embedding_layers=False)
        saved |= {id(weight) for weight in part.values()}
    if lost := [name for name, weight in trained.items() if id(weight) not in saved]:
        raise UserError(
            f"{len(lost)} weights would be trained and not be saved, such as {lost[0]}: a model with an adapter saves "
            "the adapter alone. Freeze them, or name their modules in modules_to_save."
        )
    check_new_weights(model)


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


def compute_type(args: Config, model: PreTrainedModel) -> str:
    """What forwards compute in: the arguments' mixed precision, else the weights' own type."""
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else str(model.dtype).removeprefix("torch.")


def leave_outputs_wide(accelerator: Any) -> None:
    """Keep FSDP2's mixed precision from rounding log-probs to bfloat16 on their way out of the model."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and policy is not None and policy.output_dtype is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def shard_embeddings_once(accelerator: Any, model: Any) -> None:
    """Keep FSDP2 from sharding what lies around the input embedding, which accelerate 1.15 shards by itself.

    Encoders name such a part among those that are not to be split; sharding both fails.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or plugin.transformer_cls_names_to_wrap is not None:
        return
    embedding = model.get_input_embeddings()
    named = set(getattr(model, "_no_split_modules", None) or ())
    around = {type(m).__name__ for m in model.modules() if m is not embedding and embedding in set(m.modules())}
    if named & around:
        plugin.transformer_cls_names_to_wrap = sorted(named - around)


def check_positions(model: PreTrainedModel, dataset: Any, collator: TreeCollator) -> None:
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
