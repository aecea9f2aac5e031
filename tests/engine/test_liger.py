"""Layers fused by liger-kernel compute what the model's own do, and are undone where they do not.

Triton's interpreter runs the kernels on the CPU; on a GPU they are compiled, and the check at the start looks again.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import interpreted
import liger_kernel.transformers.monkey_patch as liger
import pytest
import torch
from peft import LoraConfig, get_peft_model
from zoo import distance, gradients, own_rows, tiny_model, token_ids

from align.engine import liger as fused
from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.engine.liger import Fusion, fuse
from align.engine.probe import probe
from align.engine.scoring import ScoringEngine, attach

assert interpreted
OTHERS = ("qwen2", "qwen3", "mistral-window", "gemma2", "gemma2-softcap", "gemma3", "phi3", "olmo2", "granite")
KNOWN = ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes a millisecond for every row of every kernel."""
    monkeypatch.setattr(fused, "_LENGTHS", (5, 2))


def few() -> TreeBatch:
    """One prompt with two answers, nine tokens."""
    ids = token_ids(1)
    return pack([Example((Tree(ids(3), (Branch("chosen", ids(4)), Branch("rejected", ids(2)))),))])


def forwards(model: Any) -> list[str]:
    """Names of modules with a forward of their own."""
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("name", KNOWN)
def test_float32_agrees_with_float64_as_well_as_the_model_does(name: str) -> None:
    model, batch = tiny_model(name), few()
    exact = copy.deepcopy(model).double()
    truth = torch.cat(own_rows(exact, batch))
    expected = gradients(exact, truth)
    result = fuse(model)
    assert result.reason is None
    values = torch.cat(own_rows(model, batch))
    assert (values - truth).abs().max() < 1e-5 * (1 + truth.abs().max())
    found = {name: g.double() for name, g in gradients(model, values).items()}
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("name", KNOWN)
def test_autocast_agrees_with_float64_as_well_as_the_model_does(name: str) -> None:
    model, batch = tiny_model(name), few()
    exact = copy.deepcopy(model).double()
    truth = torch.cat(own_rows(exact, batch))
    expected = gradients(exact, truth)

    def errors() -> tuple[float, float]:
        with torch.autocast("cpu", torch.bfloat16):
            values = torch.cat([row.float() for row in own_rows(model, batch)])
        found = {name: g.double() for name, g in gradients(model, values).items()}
        return float((values - truth).detach().norm() / truth.detach().norm()), distance(found, expected)

    own = errors()
    result = fuse(model, torch.bfloat16)
    assert result.reason is None
    theirs = errors()
    assert own[0] > 1e-4, "autocast rounds, or nothing is compared here"
    assert theirs[0] < 2 * own[0]
    assert theirs[1] < 2 * own[1]


def test_what_is_fused_and_what_is_said() -> None:
    model = tiny_model("llama")
    names = dict(vars(inspect.getmodule(type(model))))
    config = model.config.to_json_string()
    result = fuse(model)
    layer = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    assert forwards(model) == [*(f"model.layers.{i}.{part}" for i in (0, 1) for part in layer), "model.norm"]
    assert vars(inspect.getmodule(type(model))) == names, "other models of this process keep their layers"
    assert (model.config.to_json_string(), type(model.model.norm).__name__) == (config, "LlamaRMSNorm")
    assert 0 < result.nats < 1e-5
    assert 0 < result.gradient < 1e-5
    assert result.sentence() == (
        f"layers: fused by liger-kernel (a log-prob changes by at most {result.nats:.1e} nats, the gradient by "
        f"{result.gradient:.1e} of its norm)"
    )


def test_the_rotary_embedding_is_ligers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    calls = []
    theirs = liger.liger_rotary_pos_emb
    monkeypatch.setattr(liger, "liger_rotary_pos_emb", lambda *a, **k: calls.append(a[0].shape) or theirs(*a, **k))
    fuse(model)
    calls.clear()
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert calls == [(1, 4, 3, 8)] * 2, "once a layer"


@pytest.mark.parametrize("change", [{"offset": 0.5}, {"variance_epsilon": 1e-2}], ids=["offset", "epsilon"])
def test_layers_that_differ_are_undone(change: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    patch = liger._patch_rms_norm_module

    def wrong(module: Any, *args: Any, **kwargs: Any) -> None:
        patch(module, *args, **kwargs)
        vars(module).update(change)

    monkeypatch.setattr(liger, "_patch_rms_norm_module", wrong)
    model = tiny_model("llama")
    before = [dict(vars(module)) for module in model.modules()]
    result = fuse(model)
    assert result.reason == f"with liger-kernel's layers a log-prob changes by {result.nats:.1e} nats"
    assert result.nats > 1e-3
    assert result.sentence() == f"layers: not fused, because {result.reason}"
    assert [dict(vars(module)) for module in model.modules()] == before


def test_a_gradient_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(mlp: Any, x: torch.Tensor) -> torch.Tensor:
        return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x).detach()) * mlp.up_proj(x))

    monkeypatch.setattr(liger.LigerSwiGLUMLP, "forward", cut)
    model = tiny_model("llama")
    result = fuse(model)
    assert result.reason is not None
    assert result.reason.startswith("with liger-kernel's layers the gradient changes by")
    assert forwards(model) == []


def test_kernels_that_fail_and_models_that_liger_does_not_know() -> None:
    model = tiny_model("gpt2")
    assert fuse(model) == Fusion("liger-kernel does not know gpt2")
    assert forwards(model) == []
    wide = tiny_model("llama", dtype=torch.float64)
    result = fuse(wide)
    assert result.reason is not None
    assert result.reason.startswith("liger-kernel's layers fail in this model (")
    assert forwards(wide) == []


def test_one_process_that_cannot_holds_back_all() -> None:
    model = tiny_model("llama")
    assert fuse(model, agree=lambda flag: False).reason == "another process cannot fuse them"
    assert forwards(model) == []


def test_copies_have_fused_layers_of_their_own() -> None:
    model = tiny_model("llama")
    fuse(model)
    twin = copy.deepcopy(model)
    assert forwards(twin) == forwards(model) != []
    row = torch.tensor([[5, 6, 7]])
    before = model(input_ids=row).logits
    with torch.no_grad():
        twin.model.norm.weight.zero_()
        twin.model.layers[0].mlp.down_proj.weight.zero_()
    assert twin(input_ids=row).logits.abs().max() == 0
    assert torch.equal(model(input_ids=row).logits, before)


def test_packed_rows_an_adapter_and_checkpointing() -> None:
    batch = few()
    model = tiny_model("llama")
    plain = copy.deepcopy(model)
    fuse(model)
    results = []
    for each in (model, plain):
        torch.manual_seed(0)
        adapted = get_peft_model(each, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        attach(adapted)
        each.activation_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
        adapted.train()
        values = ScoringEngine()(adapted, batch).tokens["logp"]
        results.append((values.detach(), gradients(adapted, values)))
    (values, found), (expected, wanted) = results
    assert (values - expected).abs().max() < 1e-5 * (1 + expected.abs().max())
    assert len(wanted) == 2 * 2 * 7
    assert distance(found, wanted) < 1e-5


def test_generation_with_a_cache_draws_the_same() -> None:
    model = tiny_model("llama")
    prompt = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, **options)
    fuse(model)
    assert model.generate(prompt, **options).tolist() == expected.tolist()


@pytest.mark.slow
def test_the_probe_shares_prompts_of_a_fused_model() -> None:
    model = tiny_model("llama")
    fuse(model)
    attach(model)
    assert probe(ScoringEngine(), model, torch.device("cpu")).mode == "tree"
