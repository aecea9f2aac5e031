"""The CUDA path on the CPU: its kernel stood in for by plain attention with the meaning that torch documents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from zoo import own_rows, tiny_model, tree_batch

from align.engine import attention
from align.engine.scoring import ScoringEngine, attach


def documented(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **options: Any
) -> Any:
    """Variable-length attention: bottom-right causal, ``window_size`` keys to the left of a query's own."""
    left, right = options["window_size"]
    groups = q.shape[1] // k.shape[1]
    assert options["enable_gqa"] == (groups > 1)
    assert right == 0
    scale = q.shape[-1] ** -0.5 if options["scale"] is None else options["scale"]
    out = []
    for q0, q1, k0, k1 in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        queries = q[q0:q1].transpose(0, 1)
        keys, values = (x[k0:k1].repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
        i = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        j = torch.arange(k1 - k0)[None]
        seen = (j <= i) & ((j >= i - left) if left >= 0 else True)
        scores = (queries @ keys.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
        out.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "phi3", "cohere2", "qwen3", "gpt2"])
def test_indices_and_windows_are_those_of_independent_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(name, dtype=torch.float64), tree_batch()
    own = torch.cat(own_rows(model, batch)).detach()
    monkeypatch.setattr(varlen, "varlen_attn", documented)

    def forced(module: Any, query: Tensor, key: Tensor, value: Tensor, *, layout: Any, **options: Any) -> Any:
        return attention._varlen(query, key, value, layout, options.get("scaling"), options.get("sliding_window")), None

    monkeypatch.setattr(attention, "tree_attention", forced)
    attach(model)
    with torch.no_grad():
        ours = ScoringEngine()(model, batch).tokens["logp"]
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-12)
