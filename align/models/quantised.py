"""Weights that bitsandbytes quantises, under an adapter: how they are read, and what lets gradients pass them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from align.errors import UserError
from align.runs.damage import read_lock
from align.runs.directory import LOCK
from align.runs.quiet import hushed

Bits = Literal["4bit", "8bit"]
_PACKING = "support_avx512bf16_for_cpu"  # of Linear4bit


def quantization(load_in: Bits) -> BitsAndBytesConfig:
    """Settings of bitsandbytes for weights under an adapter. Raises UserError where it is not installed."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("model.load_in needs bitsandbytes: pip install bitsandbytes.") from error
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        # as for other weights: on a CPU 16 bits are no faster, and round log-probs by tenths of a nat
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.accelerator.is_available() else torch.float32,
    )


def trained_in(adapter: Path) -> Bits | None:
    """How the weights under a run's adapter were quantised while it was trained; None where no run says so.

    Raises:
        UserError: where the run's lock file is damaged.
    """
    lock = adapter.parent / LOCK
    if not lock.is_file():
        return None
    section = read_lock(lock)["recipe"].get("model")
    found = section.get("load_in") if isinstance(section, dict) else None
    return found if found in ("4bit", "8bit") else None


def plain(model: Any) -> Any:
    """The model with plain weights that hold what its quantised ones stand for, in the type that its others have."""
    kind = model.dtype
    with hushed("transformers"):  # it says which type it computes in
        return model.dequantize().to(kind)


def leave_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew at the first forward in evaluation mode.

    It does on a CPU with AVX-512 for bfloat16. What then computes rounds to 16 bits, takes no small matrices, and has
    no backward: layers below would get no gradient, with a warning alone.
    """
    for module in model.modules():
        if hasattr(module, _PACKING):
            setattr(module, _PACKING, False)


def let_file_go(model: nn.Module) -> None:
    """Copy the weights that stay as they are: on a CPU they are views of their file, all of which stays in memory."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def check_quantised(model: nn.Module) -> None:
    """See to it that gradients pass the quantised weights of a model that will be trained.

    Raises:
        UserError: where they cannot: 4-bit weights that are packed already, or 8-bit ones on a CPU.
    """
    leave_unpacked(model)
    for module in model.modules():
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
            raise UserError(
                "The model's 4-bit weights are packed for inference on a CPU, as a forward in evaluation mode leaves "
                "them, and no gradient passes them: load the model anew, and give it to the trainer first."
            )
        if type(module).__name__ == "Linear8bitLt" and module.weight.device.type == "cpu":
            raise UserError(
                "model.load_in: 8bit is not possible on a CPU: bitsandbytes computes such weights otherwise in "
                "training than in evaluation there, by a nat and more for a token. Take 4bit, or leave load_in out."
            )


def adapter_values(model: nn.Module) -> dict[int, torch.Tensor]:
    """What an adapter on quantised weights holds, by the identity of each weight; nothing for another model."""
    if not _quantised(model):
        return {}
    return {id(weight): weight.data for weight in model.parameters() if weight.requires_grad}


def keep_wide(model: Any, before: dict[int, torch.Tensor]) -> None:
    """Give an adapter on quantised weights back what TRL's constructor rounds to bfloat16.

    Adapters are trained in float32, as on other weights: steps of a usual learning rate are lost in 16 bits.

    Args:
        before: of ``adapter_values``; a fresh adapter, which was not there then, is stored in float32 from now on.
    """
    if not _quantised(model):
        return
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = before.get(id(weight), weight.data.float())


def _quantised(model: Any) -> bool:
    return any(getattr(model, f"is_loaded_in_{bits}", False) for bits in ("4bit", "8bit"))
