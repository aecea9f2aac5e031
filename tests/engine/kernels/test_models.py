"""Every kernel inside real architectures: windows, scales and soft caps reach it, and log-probs are those of rows."""

from __future__ import annotations

import pytest
import torch
from layouts import documented
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention import varlen as torch_varlen
from zoo import own_rows, tiny_model, tree_batch

from align.engine.kernels import flex as flex_module
from align.engine.kernels import varlen as varlen_module
from align.engine.kernels.flex import flex
from align.engine.kernels.grouped import grouped
from align.engine.kernels.kernel import Run
from align.engine.kernels.varlen import varlen
from align.engine.scoring import ScoringEngine, attach

NAMES = ["llama", "mistral-window", "gemma3", "phi3", "cohere2", "qwen3", "gpt2", "granite"]


@pytest.mark.parametrize("kernel", [varlen, grouped, flex], ids=["varlen", "grouped", "flex"])
@pytest.mark.parametrize("name", [*NAMES, "gemma2-softcap"])
def test_log_probs_are_those_of_independent_rows(name: str, kernel: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel is varlen and name == "gemma2-softcap":
        pytest.skip("torch's varlen_attn knows no soft cap")
    monkeypatch.setattr(torch_varlen, "varlen_attn", documented)
    monkeypatch.setattr(varlen_module, "_arguments", lambda: frozenset({"window_size", "scale", "enable_gqa"}))
    monkeypatch.setattr(flex_module, "_compiled", lambda: torch_flex.flex_attention)
    monkeypatch.setattr(torch_flex, "_warn_once", lambda *args, **kwargs: None, raising=False)
    model, batch = tiny_model(name, dtype=torch.float64), tree_batch()
    own = torch.cat(own_rows(model, batch)).detach()
    attach(model)
    engine = ScoringEngine()
    engine.kernel = kernel
    with torch.no_grad():
        ours = engine(model, batch).tokens["logp"]
    # soft caps: the softmax is float32, and the cap of flex_attention
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-5 if name == "gemma2-softcap" else 1e-12)
