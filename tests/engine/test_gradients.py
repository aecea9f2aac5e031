"""Products of gradients over the head's weight, read without a backward pass, against autograd of the model itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from zoo import kept, own_logits, tiny_model, tree_batch

from align.engine import gradients
from align.engine.layout import TreeBatch, pack
from align.engine.reads import Entropy, HeadGradients, LogProb
from align.engine.scoring import ScoringEngine, attach

# plain; a scale; a scale and another head; a soft cap; a bias
MODELS = ("llama", "granite", "cohere2", "gemma2", "phi-head-bias")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 words a tile at most, so that every test goes through several, the last of them narrower."""
    monkeypatch.setattr(gradients, "tile_shape", lambda count, words, area: (count, 40))


def by_autograd(model: nn.Module, batch: TreeBatch) -> Tensor:
    """|g_w|^2, |g_l|^2 and <g_w, g_l> of every example, from the gradients of the untouched model."""
    weight = model.get_output_embeddings().weight
    found: dict[str, list[Tensor]] = {"chosen": [], "rejected": []}
    for tree, branch in batch.branches():
        logp = own_logits(model, tree, branch).log_softmax(-1).gather(1, torch.tensor(branch.ids)[:, None])[:, 0]
        found[branch.name].append(torch.autograd.grad(logp[kept(branch)].sum(), weight)[0])
    rows = zip(found["chosen"], found["rejected"], strict=True)
    return torch.stack([torch.stack([(w * w).sum(), (r * r).sum(), (w * r).sum()]) for w, r in rows])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reads", [(LogProb(),), (Entropy(), LogProb())])
def test_products_are_those_of_autograd(name: str, reads: tuple) -> None:
    model = tiny_model(name, dtype=torch.float64)
    expected = by_autograd(copy.deepcopy(model), tree_batch())
    attach(model)
    for mode in ("tree", "padded"):
        engine = ScoringEngine()
        engine.mode = mode
        scores = engine(model, tree_batch(), (*reads, HeadGradients()))
        found = scores.tokens["head_gradients"]
        assert not found.requires_grad
        # gemma normalises in float32, whatever its weights are
        torch.testing.assert_close(found, expected, rtol=1e-6 if name == "gemma2" else 1e-9, atol=0)
    assert (expected[:, 2].abs() > 1e-3).all()
    assert (expected[:, 2].square() < expected[:, 0] * expected[:, 1]).all()


def test_other_branches_and_a_batch_of_nothing() -> None:
    model = tiny_model(dtype=torch.float64)
    attach(model)
    swapped = ScoringEngine()(model, tree_batch(), (LogProb(), HeadGradients(("rejected", "chosen"))))
    plain = ScoringEngine()(model, tree_batch(), (LogProb(), HeadGradients()))
    assert torch.equal(plain.tokens["logp"], swapped.tokens["logp"])
    torch.testing.assert_close(
        swapped.tokens["head_gradients"], plain.tokens["head_gradients"][:, [1, 0, 2]], rtol=1e-12, atol=0
    )
    empty = ScoringEngine()(model, pack([], branches=("chosen", "rejected")), (LogProb(), HeadGradients()))
    assert empty.tokens["head_gradients"].shape == (0, 3)


def test_in_16_bits_norms_and_products_stay_near() -> None:
    model = tiny_model()
    attach(model)
    exact = ScoringEngine()(model, tree_batch(), (LogProb(), HeadGradients())).tokens["head_gradients"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = ScoringEngine()(model, tree_batch(), (LogProb(), HeadGradients())).tokens["head_gradients"]
    assert rounded.dtype == torch.float32
    scale = (exact[:, 0] * exact[:, 1]).sqrt()
    assert ((rounded[:, :2] / exact[:, :2] - 1).abs() < 0.03).all()
    assert ((rounded[:, 2] - exact[:, 2]).abs() / scale < 0.03).all()
