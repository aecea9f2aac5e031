"""The policy and its adapter, as a recipe asks for them. Revisions pinned, remote code off, safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from align.errors import UserError
from align.models.load import usual_type
from align.recipe.sections import located

if TYPE_CHECKING:
    from align.recipe.sections import Lora, Model


def load_model(section: Model, *, base: Path | None = None) -> PreTrainedModel:
    """Load the policy. With ``lora.adapter`` the adapter is loaded on top, and trainable.

    Full fine-tuning keeps its weights in float32 unless the recipe names a type; under an adapter they stay in the
    checkpoint's own, on a CPU in float32.

    Args:
        base: where relative folders start; they are looked up there first, then in the working directory.

    Raises:
        UserError: where the model, its revision or its type cannot be had.
    """
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": False, "dtype": section.dtype}
    if section.dtype == "auto":
        options["dtype"] = "float32" if section.lora is None else usual_type()
    if section.attention is not None:
        options["attn_implementation"] = section.attention
    if section.load_in is not None:
        options["quantization_config"] = _quantization(section)
    try:
        model = AutoModelForCausalLM.from_pretrained(located(section.id, base), **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"model.id: {section.id!r} cannot be loaded ({first}). It must be a folder with config.json and "
            "safetensors, or a Hub id that can be reached (HF_HUB_OFFLINE is honoured)."
        ) from error
    if section.lora is not None and section.lora.adapter is not None:
        from peft import PeftModel

        try:
            return PeftModel.from_pretrained(model, located(section.lora.adapter, base), is_trainable=True)
        except (OSError, ValueError) as error:
            raise UserError(f"model.lora.adapter: {section.lora.adapter!r} cannot be loaded: {error}") from error
    if section.train_only is not None:
        _freeze_others(model, section.train_only)
    return model


def _freeze_others(model: PreTrainedModel, parts: list[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    absent = [part for part in parts if not any(part in name for name in names)]
    if absent:
        raise UserError(
            f"model.train_only: no weight of {type(model).__name__} has {', '.join(map(repr, absent))} in its name; "
            f"names are such as {', '.join(names[1:4])}."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))


def lora_config(lora: Lora | None) -> Any:
    """PEFT's configuration of a fresh adapter, or None."""
    if lora is None or lora.adapter is not None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        modules_to_save=list(lora.modules_to_save) or None,
        task_type="CAUSAL_LM",
    )


def check_targets(model: PreTrainedModel, config: Any) -> None:
    """Refuse an adapter none of whose targets exists. Raises UserError with the names that do."""
    if config is None or not isinstance(config.target_modules, set | list):
        return
    linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
    ends = {n for n, _ in model.named_modules()} | {n.rsplit(".", 1)[-1] for n, _ in model.named_modules()}
    absent = sorted(t for t in config.target_modules if not any(e == t or e.endswith(f".{t}") for e in ends))
    if absent:
        raise UserError(
            f"model.lora.targets: {type(model).__name__} has no module {', '.join(map(repr, absent))}. "
            f"Its linear layers: {', '.join(linear)}; or all-linear."
        )


def _quantization(section: Model) -> BitsAndBytesConfig:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("model.load_in needs bitsandbytes: pip install bitsandbytes.") from error
    if section.load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
