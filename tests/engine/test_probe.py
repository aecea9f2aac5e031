"""The start-up probe: passes where trees are exact, and catches what a mistake would look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from zoo import ARCHITECTURES, VOCABULARY, own_rows, stirred, tiny_config, tiny_model, tree_batch

from align.engine import probe as probe_module
from align.engine.layout import Layout, Segment, TreeBatch, pack
from align.engine.probe import ProbeResult, probe
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def probed(model: torch.nn.Module) -> tuple[ProbeResult, ScoringEngine]:
    attach(model)
    engine = ScoringEngine()
    return probe(engine, model, CPU), engine


@BOTH
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_passes(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(name, dtype=dtype).train()
    result, engine = probed(model)
    assert (result.mode, result.reason, engine.mode) == ("tree", None, "tree")
    assert "prompts shared and packed" in result.sentence()
    assert model.training


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere2"])
def test_passes_under_autocast_with_float32_outputs(name: str) -> None:
    # as accelerate wraps a model: computed in bfloat16, while the outputs say float32
    model = tiny_model(name)
    attach(model)
    engine = ScoringEngine()
    inner = model.forward

    def forward(*args: object, **kwargs: object) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            out = inner(*args, **kwargs)
        if isinstance(out, dict) and not hasattr(out, "logits"):
            return {k: v.float() for k, v in out.items()}
        out["logits"] = out["logits"].float()
        return out

    model.forward = forward
    assert probe(engine, model, CPU, compute_dtype=torch.bfloat16).mode == "tree"


@BOTH
def test_linear_attention_falls_back_aloud(dtype: torch.dtype) -> None:
    result, engine = probed(tiny_model("qwen3_next", dtype=dtype))
    assert engine.mode == result.mode == "padded"
    assert result.sentence() == (
        "scoring: FALLING BACK to padded rows, because answers to the same prompt see each other in this architecture "
        "(as in recurrent or linear attention). Exact, but slower."
    )


def test_attention_sinks_fall_back_aloud() -> None:
    result, engine = probed(tiny_model("gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=5))
    assert engine.mode == "padded"
    assert "does not implement: s_aux" in result.sentence()


def planted(monkeypatch: pytest.MonkeyPatch, change: Callable[[TreeBatch], TreeBatch]) -> None:
    """Every batch that the probe makes is changed before it is scored."""
    monkeypatch.setattr(probe_module, "pack", lambda examples: change(pack(examples)))


def with_segments(batch: TreeBatch, change: Callable[[Segment], Segment]) -> TreeBatch:
    return replace(batch, layout=Layout([change(s) for s in batch.layout.segments]))


@BOTH
@pytest.mark.parametrize("spread", [0.2, 0.04])
def test_catches_one_sibling_token(spread: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(batch: TreeBatch) -> TreeBatch:
        # the rejected answer of the first prompt (9 tokens, so 8 before its branches) also sees the head of the chosen
        # branch, which is its own prompt token, and then ONE token of the chosen answer
        first, second, third, *rest = batch.layout.segments
        assert (second.p1, third.p1) == (8, 8)
        return replace(batch, layout=Layout([first, second, replace(third, p1=10), *rest]))

    planted(monkeypatch, leak)
    result, engine = probed(tiny_model(dtype=dtype, initializer_range=spread))
    assert engine.mode == "padded"
    assert "answers to the same prompt see each other" in result.sentence()


@BOTH
def test_catches_one_token_of_a_neighbour(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(batch: TreeBatch) -> TreeBatch:
        # every prompt but the first also sees the token before it, which belongs to the row beside it
        return with_segments(batch, lambda s: replace(s, p0=s.p0 - 1) if s.p1 > s.p0 > 0 else s)

    planted(monkeypatch, leak)
    result, engine = probed(tiny_model(dtype=dtype))
    assert engine.mode == "padded"
    assert "see each other" in result.sentence()


@BOTH
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_catches_wrong_positions(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_on(batch: TreeBatch) -> TreeBatch:
        return replace(batch, position_ids=torch.arange(batch.input_ids.shape[1])[None])

    planted(monkeypatch, run_on)
    result, engine = probed(tiny_model(name, dtype=dtype))
    assert engine.mode == "padded"
    assert result.reason is not None


@BOTH
def test_catches_a_branch_cut_off_its_prompt(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, lambda batch: with_segments(batch, lambda s: replace(s, p0=0, p1=0)))
    result, _ = probed(tiny_model(dtype=dtype))
    assert result.mode == "padded"
    assert "log-probs differ from the model's own by" in result.sentence()


class Halved(LlamaForCausalLM):
    """Does something to its logits that no configuration key says."""

    def forward(self, *args: object, **kwargs: object) -> CausalLMOutputWithPast:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits / 2
        return out


@BOTH
def test_refuses_an_unknown_change_of_the_logits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = stirred(Halved(tiny_config("llama"))).to(dtype).eval()
    with pytest.raises(UserError, match="Halved cannot be scored: even padded rows differ") as caught:
        probed(model)
    assert "changes its logits after the head" in str(caught.value)


def test_all_ranks_take_the_mode_of_the_slowest() -> None:
    model = tiny_model()
    attach(model)
    engine = ScoringEngine()
    asked = []

    def agree(flag: bool) -> bool:
        asked.append(flag)
        return len(asked) > 1  # another rank failed in tree mode; with padded rows all are well

    result = probe(engine, model, CPU, agree)
    assert asked == [True, True]
    assert (engine.mode, result.reason) == ("padded", "another rank cannot share prompts")


def test_not_finite_is_said() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(UserError, match="cannot be scored"):
        probed(model)


# attention with biases or masks of its own making, and a recurrent state
OLDER: dict[str, dict[str, object]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "dropout": 0, "attention_dropout": 0},
    "mamba": {"num_hidden_layers": 2, "state_size": 8},
}


@pytest.mark.parametrize("name", OLDER)
def test_what_cannot_read_a_packed_row_falls_back_aloud(name: str) -> None:
    torch.manual_seed(0)
    sizes = {} if name == "xglm" else {"hidden_size": 32}
    config = AutoConfig.for_model(name, vocab_size=VOCABULARY, pad_token_id=0, **sizes, **OLDER[name])
    model = stirred(AutoModelForCausalLM.from_config(config)).eval()
    result, engine = probed(model)
    assert engine.mode == "padded"
    assert result.sentence().startswith("scoring: FALLING BACK to padded rows, because this architecture cannot read a")
    # padding stands to the right, so that neither a bias by position nor a state sees it before the answer's end
    batch = tree_batch()
    ours = engine(model, batch).tokens["logp"]
    torch.testing.assert_close(ours, torch.cat(own_rows(model, batch)), atol=1e-4, rtol=1e-4)
    ours.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_memory_that_runs_out_is_no_trait_of_an_architecture() -> None:
    model = tiny_model("llama")
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda *_: (hook.remove(), torch.empty(2**50)))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        probed(model)
