"""Rounding by hand, and what of a model it touches."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import norm
from torch import nn
from zoo import tiny_model

from align.errors import UserError
from align.eval.quantise import NF4, round_nf4, round_rows, round_weights


def test_two_rows_at_four_bits_by_hand() -> None:
    """Seven levels on each side: the steps are 0.7 / 7 and 14 / 7."""
    weight = torch.tensor([[0.7, -0.34, 0.04], [-14.0, 5.1, 0.9]], dtype=torch.float64)
    expected = torch.tensor([[0.7, -0.3, 0.0], [-14.0, 6.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(round_rows(weight, 4), expected, rtol=1e-6, atol=1e-7)
    ternary = torch.tensor([[0.7, 0.0, 0.0], [-14.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(round_rows(weight, 2), ternary, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [4, 8])
def test_no_value_moves_by_more_than_half_a_step_and_twice_is_once(bits: int) -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 5)[:, None]
    rounded = round_rows(weight, bits)
    step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    moved = (rounded - weight).abs() / step
    assert moved.max() <= 0.5 + 1e-4
    assert moved.max() > 0.45  # it does round
    assert max(len(row.unique()) for row in rounded) <= 2**bits - 1
    torch.testing.assert_close(round_rows(rounded, bits), rounded, rtol=1e-6, atol=0)


def test_a_row_of_zeros_stays_and_the_type_is_kept() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=torch.bfloat16)
    rounded = round_rows(weight, 4)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, weight)


def test_the_values_of_nf4_are_quantiles_of_a_normal_distribution() -> None:
    """As QLoRA makes them: eight above 0 and seven below it, evenly spaced shares, the largest put to 1."""
    outermost = (1 - 1 / (2 * 15) + 1 - 1 / (2 * 16)) / 2
    above = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([above, [0.0], below]))
    np.testing.assert_allclose(NF4, expected / expected.max(), rtol=0, atol=3e-7)


@pytest.mark.parametrize("shape", [(4, 64), (3, 50), (1, 7)])
def test_every_weight_goes_to_the_nearest_value_of_its_block(shape: tuple[int, int]) -> None:
    """Blocks of 64 go on from row to row, and the last one may be shorter."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3
    found = round_nf4(weight).flatten().numpy()
    flat, code = weight.flatten().numpy(), np.array(NF4, dtype=np.float32)
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        scale = np.abs(block).max()
        nearest = code[np.abs(block[:, None] - scale * code).argmin(axis=1)] * scale
        np.testing.assert_allclose(found[start : start + 64], nearest, rtol=1e-6, atol=1e-7)
    assert torch.equal(round_nf4(torch.zeros(2, 64)), torch.zeros(2, 64))
    assert round_nf4(weight.bfloat16()).dtype == torch.bfloat16


def test_nf4_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed (extra qlora)")
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(2))
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4", blocksize=64))
    torch.testing.assert_close(round_nf4(weight), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2"])
def test_linear_layers_are_rounded_and_nothing_else(kind: str) -> None:
    model = tiny_model(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    done = round_weights(model, partial(round_rows, bits=4))
    touched = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # of each layer; GPT-2 keeps its weights as [in, out]
    expected = {
        n for n, p in before.items() if p.dim() == 2 and not any(x in n for x in ("embed", "lm_head", "wte", "wpe"))
    }
    assert touched == expected
    assert done.layers == len(expected) == {"gpt2": 8}.get(kind, 14)
    name = min(expected)
    weight = before[name].numpy().astype(np.float64)
    weight = weight.T if kind == "gpt2" else weight
    step = np.abs(weight).max(axis=1, keepdims=True) / 7
    by_hand = np.round(weight / step) * step
    found = model.get_parameter(name).detach().numpy()
    np.testing.assert_allclose(found.T if kind == "gpt2" else found, by_hand, rtol=1e-5, atol=1e-7)
    outside = sum(p.numel() for n, p in before.items() if not any(x in n for x in ("embed", "lm_head", "wte")))
    assert done.share == pytest.approx(sum(before[n].numel() for n in expected) / outside)


def test_experts_outside_linear_layers_show_in_the_share() -> None:
    assert round_weights(tiny_model("qwen3_moe"), round_nf4).share < 0.9


def test_an_adapters_own_matrices_are_left_alone() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    done = round_weights(model, partial(round_rows, bits=4))
    touched = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert done.layers == len(touched) == 14
    assert not any("lora_" in name for name in touched)


def test_a_model_without_linear_layers_is_refused() -> None:
    class Bare(nn.Module):
        def get_input_embeddings(self) -> nn.Module:
            return self

        get_output_embeddings = get_input_embeddings

    with pytest.raises(UserError, match="no linear layers"):
        round_weights(Bare(), round_nf4)
