"""A reference kept in the compute type is the same to the last bit, and half as large."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training import history, trainer
from zoo import ARCHITECTURES, tiny_model, tree_batch

from align.engine.reads import LogProb
from align.engine.scoring import ScoringEngine, attach
from align.objectives import DPO, KL, WeightedSum
from align.reference.frozen import frozen
from align.reference.narrow import narrow


def rounded(model: Any) -> Any:
    """What a checkpoint of bfloat16 is, loaded in float32."""
    return model.to(torch.bfloat16).float()


def scored(model: Any) -> Any:
    """Log-probs of a batch, with the head's hidden states and weight, as a run under autocast computes them."""
    attach(model)

    @torch.no_grad()
    def score(batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return ScoringEngine()(model, batch, (LogProb(),), keep=True)

    return score


def size(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("exact", [True, False], ids=["bfloat16 checkpoint", "float32 checkpoint"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_to_the_bit(name: str, exact: bool) -> None:
    model = frozen(rounded(tiny_model(name)) if exact else tiny_model(name))
    score, batch, wide = scored(model), tree_batch(), size(model)
    before = score(batch)
    sentence = narrow(model, torch.bfloat16, lambda b: score(b).tokens["logp"])
    after = score(batch)
    assert sentence == f"reference: weights kept in bfloat16, {size(model) / 1e9:.2f} GB in place of {wide / 1e9:.2f}"
    assert torch.equal(before.tokens["logp"], after.tokens["logp"])
    assert torch.equal(before.head.hidden, after.head.hidden)
    assert torch.equal(before.head.weight, after.head.weight.float())
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()]
    assert all(p.dtype == torch.bfloat16 for m in linear for p in m.parameters(recurse=False))
    assert model.get_output_embeddings().weight.dtype == (torch.bfloat16 if exact else torch.float32)
    if name == "llama":  # all but five norms of 32 numbers
        assert size(model) == (wide / 2 + 5 * 32 * 2 if exact else wide / 2 + 5 * 32 * 2 + 2 * 97 * 32 * 2)


def test_a_tied_head_stays_tied() -> None:
    model = frozen(rounded(tiny_model("llama-tied")))
    score = scored(model)
    narrow(model, torch.bfloat16, lambda b: score(b).tokens["logp"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.embed_tokens(torch.tensor([3])).dtype == torch.float32


def test_weights_that_are_read_outside_autocast_stay_wide() -> None:
    def wide(module: nn.Linear, args: tuple) -> None:
        with torch.autocast("cpu", enabled=False):
            nn.functional.linear(args[0].float(), module.weight)

    model = frozen(rounded(tiny_model("llama")))
    model.model.layers[1].mlp.up_proj.register_forward_pre_hook(wide)
    score, before = scored(model), copy.deepcopy(model.state_dict())
    assert narrow(model, torch.bfloat16, lambda b: score(b).tokens["logp"]) == (
        "reference: weights kept in float32 and not in bfloat16, since this architecture does not take them "
        "(RuntimeError)"
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.model.embed_tokens._forward_hooks


def test_weights_whose_rounding_shows_stay_wide() -> None:
    model = frozen(tiny_model("llama"))
    exact = model.model.layers[0].mlp.up_proj.weight.clone()
    model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, args, out: out + (module.weight.float() != exact).sum()
    )
    score = scored(model)
    assert narrow(model, torch.bfloat16, lambda b: score(b).tokens["logp"]) == (
        "reference: weights kept in float32 and not in bfloat16, since log-probs would not be the same"
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_run_is_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded(tiny_model()).save_pretrained(tmp_path / "model")
    runs = []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr("align.reference.policy.narrow", lambda *_: "")
        model = type(tiny_model()).from_pretrained(tmp_path / "model", dtype=torch.float32)
        said: list[str] = []
        objective = WeightedSum(((DPO(0.3), 1.0), (KL(branch="chosen"), 0.1)))
        made = trainer(tmp_path / f"{kept}", objective, model=model, bf16=True)
        made.echo = said.append
        made.train()
        types = {p.dtype for p in made.reference.model.parameters()}
        assert types == ({torch.bfloat16, torch.float32} if kept else {torch.float32})
        assert any(line.startswith("reference: weights kept in bfloat16") for line in said) is kept
        runs.append(history(made, "loss", "grad_norm"))
    assert runs[0] == runs[1]


def test_what_moves_or_computes_in_float32_is_left_alone(tmp_path: Path) -> None:
    moving = trainer(tmp_path / "a", DPO(), bf16=True, reference_sync=(1, 0.5))
    moving.train()
    plain = trainer(tmp_path / "b", DPO())
    plain.train()
    for made in (moving, plain):
        assert {p.dtype for p in made.reference.model.parameters()} == {torch.float32}
