"""How the policy's layers compute: as they are, fused by liger-kernel, or compiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from align.compat import SFTConfig
from align.engine.compiled import compile_layers
from align.engine.liger import fuse
from align.errors import UserError
from align.recipe.train_keys import COMPILE_MODES
from align.runs.launch import launched_with_fsdp
from align.trainers.policy import compute_type
from align.versions import DISTRIBUTION


@dataclass(frozen=True)
class Layers:
    """How the policy's layers compute; the fields are keys of a recipe's ``train`` section.

    Attributes:
        use_liger_kernel: fuse RMSNorm, rotary embedding and gated MLP. None: on CUDA, where liger-kernel is installed
            and the check at the start agrees. True: insist on it. False: leave the layers as they are.
        torch_compile: compile every decoder layer, which fuses them too: liger-kernel is then used only if insisted on.
        torch_compile_mode: of torch.compile, ``default`` or ``max-autotune-no-cudagraphs``.

    Raises:
        UserError: for another mode.
    """

    use_liger_kernel: bool | None = None
    torch_compile: bool = False
    torch_compile_mode: str | None = None

    def __post_init__(self) -> None:
        if self.torch_compile_mode not in (None, *COMPILE_MODES):
            raise UserError(
                f"train.torch_compile_mode is {self.torch_compile_mode!r}; it must be {' or '.join(COMPILE_MODES)}. "
                "Other modes replay CUDA graphs, which need the same shapes at every step."
            )


def fuse_layers(model: Any, args: SFTConfig, layers: Layers, say: Callable[[str], Any]) -> None:
    """Fuse the policy's layers where that is wanted and possible, and say what came of it.

    Called before the reference is copied, so that the copy has them too, and before anything wraps the model. The
    model is moved to its device for the check.

    Raises:
        UserError: where it is not possible and ``use_liger_kernel`` is true.
    """
    if layers.use_liger_kernel is False or (layers.torch_compile and layers.use_liger_kernel is None):
        return
    on_gpu = args.device.type == "cuda"
    if reason := _obstacle(model, on_gpu):
        sentence = f"layers: not fused, because {reason}"
    else:
        if not getattr(model, "is_quantized", False):
            model.to(args.device)
        mixed = getattr(torch, compute_type(args, model))
        fusion = fuse(model, None if mixed == model.dtype else mixed, lambda flag: all(gather_object([flag])))
        reason, sentence = fusion.reason, fusion.sentence()
    if reason and layers.use_liger_kernel:
        raise UserError(f"train.use_liger_kernel: true is not possible, because {reason}. Leave it out.")
    if on_gpu:
        say(sentence)


def compile_wanted(
    layers: Layers, policy: nn.Module, reference: nn.Module | None, sharded: bool, say: Callable[[str], Any]
) -> None:
    """Compile the layers of policy and reference where that is wanted, before anything wraps them.

    Raises:
        UserError: where weights are in pieces, or there is no compiler for what torch.compile writes.
    """
    if not layers.torch_compile:
        return
    if sharded:
        raise UserError("train.torch_compile is not supported with FSDP and ZeRO-3: leave it out.")
    if not any(map(shutil.which, (os.environ.get("CXX") or "g++", "gcc", "clang"))):
        raise UserError("train.torch_compile needs a C++ compiler: install g++, or leave it out.")
    count = compile_layers(policy, mode=layers.torch_compile_mode)
    if reference is not None:
        compile_layers(reference, mode=layers.torch_compile_mode)
    say(f"layers: {count} compiled with torch.compile (the first batches take longer)")


def _obstacle(model: Any, on_gpu: bool) -> str | None:
    """Why fusing is not even tried, or None."""
    if not on_gpu:
        return "its kernels need a CUDA device, and this run computes elsewhere"
    if find_spec("liger_kernel") is None:
        return f"liger-kernel is not installed (pip install '{DISTRIBUTION}[gpu]')"
    if launched_with_fsdp() or any(hasattr(p, "ds_id") for p in model.parameters()):
        return "FSDP and ZeRO-3 cut the weights up before a check could run"
    if len(set(getattr(model, "hf_device_map", None) or {0: 0})) > 1:
        return "the model lies on several devices"
    return None
