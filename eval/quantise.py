"""Weights rounded to few bits, to ask whether what was forgotten comes back when a model is made smaller.

Zhang et al. (arXiv 2410.16454) found that 4 bits bring answers back that unlearning had only moved a little. Two kinds
of rounding are undone at once, so that the model still computes in its own type: plain rounding to nearest (RTN) with
one scale for each output channel, and NF4 (Dettmers et al., arXiv 2305.14314), the 4 bits of bitsandbytes and QLoRA.
Neither is GPTQ or AWQ, whose weights differ and whose result may, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from align.errors import UserError


@dataclass(frozen=True)
class Rounded:
    """What was rounded: ``layers`` linear layers, which hold ``share`` of the parameters outside the embeddings."""

    layers: int
    share: float


# the 16 values of NF4, as bitsandbytes has them: quantiles of a normal distribution, its largest at 1
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_BLOCK = 64  # weights that share a scale in NF4

Rounding = Callable[[Tensor], Tensor]  # of a weight [out, in]


def round_weights(model: nn.Module, rounding: Rounding) -> Rounded:
    """Round the weight of every linear layer in place by ``rounding``.

    Embeddings and the head stay as they are, as in common tools, and so do biases. An adapter must be merged before
    (``merge_adapter``): its own matrices are left alone.

    Raises:
        UserError: where the model has no linear layer in a floating type.
    """
    kept = [m for name in ("get_input_embeddings", "get_output_embeddings") if (m := getattr(model, name)())]
    spared = {id(p) for module in kept for p in module.parameters()}
    layers = [(name, m) for name, m in model.named_modules() if "lora_" not in name and _is_linear(m)]
    layers = [(name, m) for name, m in layers if id(m.weight) not in spared and m.weight.is_floating_point()]
    if not layers:
        raise UserError("The model has no linear layers whose weights could be rounded.")
    with torch.no_grad():
        for _, module in layers:
            # transformers' Conv1D, in GPT-2, keeps its weight as [in, out]
            turned = not isinstance(module, nn.Linear)
            weight = module.weight.T if turned else module.weight
            weight.copy_(rounding(weight))
    total = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name and id(p) not in spared)
    return Rounded(len(layers), sum(m.weight.numel() for _, m in layers) / total)


def round_rows(weight: Tensor, bits: int) -> Tensor:
    """``weight`` [out, in] with each row on its own grid of 2^bits - 1 levels, symmetric about 0, in its own type.

    The row's largest magnitude is the outermost level, so no value moves by more than half a step.
    """
    top = 2 ** (bits - 1) - 1
    wide = weight.float()
    scale = wide.abs().amax(dim=1, keepdim=True) / top
    levels = (wide / torch.where(scale > 0, scale, 1.0)).round().clamp(-top, top)
    return (levels * scale).to(weight.dtype)


def round_nf4(weight: Tensor) -> Tensor:
    """``weight`` in NF4 and back, in its own type: each value goes to the nearest of 16, times its block's largest.

    Blocks are 64 weights that follow one another, row by row. Scales stay in float32 (no double quantisation).
    """
    flat = weight.float().flatten()
    filled = torch.nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    scale = filled.abs().amax(dim=1, keepdim=True)
    code = torch.tensor(NF4, device=weight.device)
    places = torch.bucketize(filled / torch.where(scale > 0, scale, 1.0), (code[1:] + code[:-1]) / 2)
    return (code[places] * scale).flatten()[: len(flat)].view(weight.shape).to(weight.dtype)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
