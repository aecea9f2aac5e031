"""Compiled layers compute what the model's own do, and are compiled once for rows of every length."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from zoo import distance, examples, gradients, tiny_model, tree_batch

from align.engine.compiled import compile_layers
from align.engine.layout import pack
from align.engine.probe import probe
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError

pytestmark = [
    pytest.mark.slow,  # tracing takes seconds
    # of torch's own compiler
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many graphs were compiled so far."""
    return counters["stats"].get("unique_graphs", 0)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_ten_batches_of_different_shapes(name: str, checkpointing: bool) -> None:
    model = tiny_model(name)
    plain = copy.deepcopy(model)
    assert compile_layers(model, backend="aot_eager") == 2
    attach(plain)
    for each in (model, plain):
        each.train()
        if checkpointing:
            each.activation_checkpointing_enable({"use_reentrant": False})
    engine, seen, widths = ScoringEngine(), [], set()
    for seed in range(10):
        batch = pack(examples(seed)[: 1 + seed % 4] + examples(seed + 50)[: seed // 4])
        widths.add(batch.input_ids.shape[1])
        values = engine(model, batch).tokens["logp"]
        found = gradients(model, values)
        wanted = engine(plain, batch).tokens["logp"]
        assert (values - wanted).abs().max() < 1e-5
        assert distance(found, gradients(plain, wanted)) < 1e-5
        seen.append(graphs())
    assert len(widths) == 9
    assert seen[0] > 0, "checkpointing compiles too"
    assert set(seen) == {seen[0]}, "nothing is compiled again"
    assert seen[0] <= 5, "layers share what is compiled"


def test_evaluation_generation_and_the_models_own_logits() -> None:
    model = tiny_model()
    row = torch.tensor([[5, 6, 7]])
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    drawn = model.generate(row, **options).tolist()
    compile_layers(model, backend="aot_eager")
    assert model.generate(row, **options).tolist() == drawn
    model(input_ids=row)
    assert graphs() == 0, "sampling runs as before"
    assert probe(ScoringEngine(), model, torch.device("cpu")).mode == "tree"
    after = graphs()
    with torch.no_grad():
        ScoringEngine()(model, tree_batch())
    assert graphs() == after > 0


def test_an_adapter_and_a_copy() -> None:
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    plain = copy.deepcopy(adapted)
    attach(plain)
    compile_layers(adapted, backend="aot_eager")
    batch = tree_batch()
    values, wanted = (ScoringEngine()(each, batch).tokens["logp"] for each in (adapted, plain))
    assert (values - wanted).abs().max() < 1e-5
    assert distance(gradients(adapted, values), gradients(plain, wanted)) < 1e-5
    twin = copy.deepcopy(adapted)
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.zero_()
        assert torch.equal(ScoringEngine()(twin, batch).tokens["logp"], values), "a copy has weights of its own"


def test_inductor_agrees_within_rounding() -> None:
    model = tiny_model()
    plain = copy.deepcopy(model)
    compile_layers(model)
    attach(plain)
    batch = tree_batch()
    values, wanted = (ScoringEngine()(each, batch).tokens["logp"] for each in (model, plain))
    assert (values - wanted).abs().max() < 1e-5
    assert distance(gradients(model, values), gradients(plain, wanted)) < 1e-5


def test_a_model_without_named_layers() -> None:
    model = tiny_model()
    model._no_split_modules = None
    with pytest.raises(UserError) as caught:
        compile_layers(model)
    assert str(caught.value) == (
        "train.torch_compile: LlamaForCausalLM does not say which of its modules are layers. Leave it out."
    )
