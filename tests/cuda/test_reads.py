"""Adapters, checkpointing and the other reads on the device: as good as the model's own values, measured by float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from precision import PRECISIONS, assert_as_good, computing, exact, own_padded, read, weight_dtype, weights_of
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from zoo import kept, lora, own_logits, own_rows, stirred, tiny_config, tiny_model, tree_batch

from align.engine.layout import TreeBatch
from align.engine.reads import HeadGradients, Hidden, KLToReference, LogProb, Score
from align.engine.scoring import ScoringEngine, attach

Own = Callable[[Any, TreeBatch], list[Tensor]]
EVERY = pytest.mark.parametrize("precision", PRECISIONS)


def assert_good(
    model: Any,
    precision: str,
    device: torch.device,
    own: Own,
    ours: Callable[[Any, TreeBatch], Tensor],
    *,
    ready: Callable[[Any], Any] = attach,
    feed_last: bool = False,
) -> None:
    """``ours`` is as near to ``own`` in float64 as ``own`` is at this precision; ``ready`` is done to our model."""
    batch = tree_batch(feed_last=feed_last)
    truth = read(exact(model), "fp32", lambda m: torch.cat(own(m, batch)))
    model, batch = model.to(device), batch.to(device)
    alone = [read(model, precision, lambda m: torch.cat(own(m, batch)))]
    if own is own_rows:
        alone.append(read(model, precision, lambda m: torch.cat(own_padded(m, batch))))
    ready(model)
    assert_as_good(read(model, precision, lambda m: ours(m, batch)), alone, truth)


def log_probs(model: nn.Module, batch: TreeBatch) -> Tensor:
    return ScoringEngine()(model, batch).tokens["logp"]


@EVERY
def test_an_adapter_and_what_is_under_it(device: torch.device, precision: str) -> None:
    model = weights_of(lora(tiny_model()), precision)
    assert_good(copy.deepcopy(model), precision, device, own_rows, log_probs)
    # the same with the adapter off, which is the reference of a LoRA run; no gradient reaches anything then
    model, batch = model.to(device), tree_batch()
    attach(model)
    with torch.no_grad(), model.disable_adapter(), computing(precision, device):
        off = log_probs(model, batch.to(device))
    bare = weights_of(tiny_model(), precision)
    with torch.no_grad():
        truth = torch.cat(own_rows(exact(bare), batch))
        with computing(precision, device):
            own = torch.cat(own_rows(bare.to(device), batch))
    assert (off.double().cpu() - truth).norm() <= 3 * (own.double().cpu() - truth).norm()


@EVERY
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["saved-tensors", "reentrant"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_checkpointing(device: torch.device, name: str, reentrant: bool, adapter: bool, precision: str) -> None:
    def ready(model: Any) -> None:
        attach(model)
        with warnings.catch_warnings():  # newer transformers call it activation checkpointing
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        if adapter:
            model.enable_input_require_grads()
        model.train()

    model = tiny_model(name)
    model = weights_of(lora(model) if adapter else model, precision)
    assert_good(model, precision, device, own_rows, log_probs, ready=ready)


@EVERY
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_to_a_reference(device: torch.device, direction: Any, precision: str) -> None:
    frozen = weights_of(tiny_model(seed=1), precision).requires_grad_(False)
    references = {torch.float64: exact(frozen), weight_dtype(precision): frozen.to(device)}

    def own(model: Any, batch: TreeBatch) -> list[Tensor]:
        reference = references[model.dtype]
        out = []
        for tree, branch in batch.branches():
            p, q = (own_logits(m, tree, branch).log_softmax(-1) for m in (reference, model))
            first, second = (p, q) if direction == "forward" else (q, p)
            out.append((first.exp() * (first - second)).sum(-1)[kept(branch).to(p.device)])
        return out

    def ours(model: Any, batch: TreeBatch) -> Tensor:
        engine, kl = ScoringEngine(), KLToReference(direction)
        # the read takes the reference's distribution from what its forward kept
        attach(frozen)
        with torch.no_grad():
            head = engine(frozen, batch, keep=True).head
        return engine(model, batch, (LogProb(), kl), reference=head).tokens[kl.name]

    assert_good(weights_of(tiny_model(), precision), precision, device, own, ours)


@EVERY
@pytest.mark.parametrize("layer", [1, -1])
def test_hidden_states(device: torch.device, layer: int, precision: str) -> None:
    hidden = Hidden(layer)

    def own(model: Any, batch: TreeBatch) -> list[Tensor]:
        out = []
        for tree, branch in batch.branches():
            row = torch.tensor([[*tree.prompt, *branch.ids]], device=model.device)
            states = model(input_ids=row, output_hidden_states=True, use_cache=False).hidden_states[layer][0]
            out.append(states[len(tree.prompt) - 1 : -1][kept(branch).to(row.device)])
        return out

    def ours(model: Any, batch: TreeBatch) -> Tensor:
        return ScoringEngine()(model, batch, (LogProb(), hidden)).tokens[hidden.name]

    assert_good(weights_of(tiny_model("gemma3"), precision), precision, device, own, ours)


@EVERY
def test_scores_of_a_reward_model(device: torch.device, precision: str) -> None:
    def own(model: Any, batch: TreeBatch) -> list[Tensor]:
        rows = [torch.tensor([[*tree.prompt, *b.ids]], device=model.device) for tree, b in batch.branches()]
        return [model.score(model.model(row, use_cache=False).last_hidden_state[0, -1]) for row in rows]

    def ours(model: Any, batch: TreeBatch) -> Tensor:
        return ScoringEngine()(model, batch, (Score(),)).tokens["score"]

    torch.manual_seed(0)
    model = stirred(AutoModelForSequenceClassification.from_config(tiny_config("llama", num_labels=1))).eval()
    assert_good(weights_of(model, precision), precision, device, own, ours, feed_last=True)


@EVERY
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi-head-bias"])
def test_products_of_gradients_over_the_head(device: torch.device, name: str, precision: str) -> None:
    def products(model: Any, batch: TreeBatch) -> Tensor:
        attach(model)
        return ScoringEngine()(model, batch, (LogProb(), HeadGradients())).tokens["head_gradients"]

    model = weights_of(tiny_model(name), precision)
    with torch.no_grad():
        truth = products(exact(model), tree_batch())  # in float64 it is autograd's, see tests/engine/test_gradients.py
        with computing(precision, device):
            found = products(model.to(device), tree_batch().to(device)).double().cpu()
    norms = truth[:, :2].prod(1).sqrt()[:, None]
    tolerance = 1e-4 if precision == "fp32" else 0.05
    assert ((found - truth).abs() <= tolerance * torch.cat([truth[:, :2], norms], 1)).all()
