"""Layers followed on shapes alone, beside the same layers computing for real under torch's own hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import ARCHITECTURES, tiny_model

from align.engine.kernels.segments import segments
from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.engine.scoring import attach
from align.models.limits import skeleton
from align.models.look import put_on
from align.plan.trace import Layer, Live, trace
from align.plan.weights import layers_of
from align.trainers.policy import switch_dropout_off


def batch(rows: int) -> TreeBatch:
    def ids(count: int, start: int) -> list[int]:
        return [(start + i) % 97 for i in range(count)]

    pairs = (Branch("chosen", ids(30, 1)), Branch("rejected", ids(25, 2)))
    return pack([Example((Tree(ids(20, row), pairs),)) for row in range(rows)])


def planned(config: Any, rows: int = 3, autocast: torch.dtype | None = None) -> list[Layer]:
    model = skeleton(config)
    switch_dropout_off(model)
    return trace(model, batch(rows), autocast, "cpu")


def kept_for_real(model: Any, rows: int = 3) -> int:
    """Bytes of the storages that autograd keeps for the backward of all layers, weights aside."""
    switch_dropout_off(model)
    inner, given = attach(model), batch(rows)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, Tensor] = {}
    inside: list[bool] = []

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if inside and storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = x.detach()  # alive, so that no other storage comes to its place
        return x

    for layer in layers_of(inner):
        layer.register_forward_pre_hook(lambda *_: inside.append(True))
        layer.register_forward_hook(lambda *_: inside.clear())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        placeholder = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        inner.base_model(
            input_ids=given.input_ids,
            position_ids=given.position_ids,
            attention_mask=placeholder,
            use_cache=False,
            layout=given.layout,
            kernel=segments,
        )
    return sum(x.untyped_storage().nbytes() for x in seen.values())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "gpt_neox", "olmo2", "opt", "phi3", "qwen3_moe"])
def test_what_is_kept_is_what_autograd_keeps(name: str) -> None:
    model = tiny_model(name)
    layers = planned(model.config)
    # attention's own buffers on a CPU, and positions that all layers share, are what differs
    assert sum(layer.keeps for layer in layers) == pytest.approx(kept_for_real(model), rel=0.06, abs=0)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "qwen3_next"])
def test_every_architecture_is_followed(name: str) -> None:
    for layer in planned(tiny_model(name).config):
        assert layer.forward >= layer.keeps > layer.enters > 0
        assert layer.silent < layer.forward
        assert layer.backward > 0


def test_it_grows_with_the_rows() -> None:
    config = tiny_model("llama").config
    one, two = planned(config, 2)[0], planned(config, 4)[0]
    # masks alone do not grow: rows of one shape share them
    assert two.enters == 2 * one.enters
    assert 1.9 * one.keeps < two.keeps <= 2 * one.keeps


def test_autocast_keeps_narrow_activations_and_copies_of_weights() -> None:
    config = tiny_model("llama").config
    wide, narrow = planned(config, 8)[0], planned(config, 8, torch.bfloat16)[0]
    assert 0.5 * wide.keeps < narrow.keeps < 0.85 * wide.keeps


def test_an_adapter_makes_no_gradients_of_the_models_own_weights() -> None:
    from peft import LoraConfig

    config = tiny_model("llama", hidden_size=128, intermediate_size=192).config
    model = skeleton(config)
    model.requires_grad_(False)
    adapted = put_on(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapter, full = trace(adapted, batch(1), None, "cpu")[0], planned(config, 1)[0]
    weights = 4 * sum(p.numel() for p in layers_of(skeleton(config))[0].parameters())
    assert weights > 4 * full.enters
    assert 0.2 * weights < full.backward - adapter.backward < weights  # the highest point comes before the last ones


def test_live_counts_what_is_there_and_forgets_what_goes() -> None:
    with Live() as live:
        a = torch.zeros(1000)
        view = a[:500]
        assert (live.now, live.peak) == (4000, 4000)
        b = a + 1
        del a
        assert live.now == 8000  # the view holds the storage
        del view
        assert (live.now, live.peak) == (4000, 8000)
        live.mark()
        b.add_(1)  # in place
        assert (live.now, live.peak) == (4000, 4000)
