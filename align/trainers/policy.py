"""The model that a trainer is given, made ready to be trained on packed trees."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from align.compat import SFTConfig
from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import longest_sequence
from align.errors import UserError

# how modeling files call the rates of what they draw at random while training
_NOISE = ("dropout", "_pdrop", "layerdrop", "jitter_noise")


def load(model: Any, args: SFTConfig) -> Any:
    """The model itself, or the one that a name stands for."""
    if not isinstance(model, str):
        return model
    options = {"dtype": "float32", "trust_remote_code": False, **(args.model_init_kwargs or {})}
    args.model_init_kwargs = None
    return AutoModelForCausalLM.from_pretrained(model, **options)


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


def compute_type(args: SFTConfig, model: PreTrainedModel) -> str:
    """What forwards compute in: the arguments' mixed precision, else the launcher's, else the weights' own type."""
    mixed = "bf16" if args.bf16 else "fp16" if args.fp16 else os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return {"bf16": "bfloat16", "fp16": "float16"}.get(mixed, str(model.dtype).removeprefix("torch."))


def leave_outputs_wide(accelerator: Any) -> None:
    """Keep FSDP2's mixed precision from rounding log-probs to bfloat16 on their way out of the model."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and policy is not None and policy.output_dtype is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


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
