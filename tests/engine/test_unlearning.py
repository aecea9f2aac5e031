"""What unlearning asks of the engine: hidden states at the targets themselves, branches of whole texts, both modes."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import distance, kept, own_logits, small, tiny_model, token_ids

from align.data.batches.collator import TreeCollator
from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.engine.reads import Hidden, LogProb, feeds_last
from align.engine.scores import Scores
from align.engine.scoring import Mode, ScoringEngine, attach
from align.errors import UserError
from align.objectives import KL, NLL, NPO, OBJECTIVES, RMU, Objective, WeightedSum

UNLEARNING = [name for name in OBJECTIVES if {"forget", "alternate"} & set(small(name).branches)]
SUMS = {
    "npo+nll": WeightedSum(((NPO(), 1.0), (NLL(branch="retain", positions="all"), 0.5))),
    "rmu+kl": WeightedSum(((small("rmu"), 1.0), (KL(branch="retain", positions="all", direction="reverse"), 0.5))),
}


def rows(count: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """Forget rows with alternates and retain partners; one masked answer, one partner without a prompt of its own."""
    ids, source = token_ids(seed), random.Random(seed)
    made = []
    for i in range(count):
        lengths = [source.randrange(1, 9) for _ in range(5)]
        names = ("prompt_ids", "forget_ids", "alternate_ids", "retain_ids", "retain_prompt_ids")
        made.append({**dict(zip(names, map(ids, lengths), strict=True)), "row": i})
    made[0] |= {"forget_ids": ids(4), "forget_mask": [0, 1, 1, 0]}
    made[1]["retain_prompt_ids"] = None
    return made


def scored(objective: Objective, model: nn.Module, frozen: nn.Module, batch: TreeBatch, mode: Mode) -> Tensor:
    """The loss of a step over this batch alone."""
    engine = ScoringEngine(rows_per_chunk=3)
    engine.mode = mode
    reads = objective.reads()
    hidden = tuple(r for r in reads if isinstance(r, Hidden))
    with torch.no_grad():
        reference = engine(frozen, batch, (LogProb(), *hidden), keep=any(r.needs_reference for r in reads))
    terms = objective(engine(model, batch, reads, reference=reference.head), reference)
    return sum(t.weight * t.losses.sum() / sum(batch.units[u] for u in t.unit.split("+")) for t in terms.losses)


@pytest.mark.parametrize("name", [*UNLEARNING, *SUMS])
def test_trees_and_padded_rows_give_the_same_loss_and_gradients(name: str) -> None:
    objective = SUMS.get(name) or small(name)
    model, frozen = tiny_model(dtype=torch.float64), tiny_model(seed=1, dtype=torch.float64)
    attach(model), attach(frozen)
    batch = TreeCollator(objective.branches, feed_last=feeds_last(objective.reads()))(rows())["tree"]
    found = []
    for mode in ("tree", "padded"):
        model.zero_grad()
        loss = scored(objective, model, frozen, batch, mode)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    # the model's own norms and rotary angles go through float32
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert distance(found[1][1], found[0][1]) < 1e-5


@pytest.mark.parametrize("mode", ["tree", "padded"])
@pytest.mark.parametrize("layer", [0, 1, 2, -1])
def test_hidden_states_at_the_targets_themselves(layer: int, mode: Mode) -> None:
    model = tiny_model()
    batch = TreeCollator(("forget", "alternate", "retain"), feed_last=True)(rows())["tree"]
    expected = []
    for tree, branch in batch.branches():
        out = model(torch.tensor([[*tree.prompt, *branch.ids]]), output_hidden_states=True)
        expected.append(out.hidden_states[layer][0, len(tree.prompt) :][kept(branch)])
    attach(model)
    engine = ScoringEngine(rows_per_chunk=3)
    engine.mode = mode
    read = Hidden(layer, at="target")
    found = engine(model, batch, (LogProb(), read, Hidden(layer))).tokens
    assert torch.allclose(found[read.name], torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[read.name], found[Hidden(layer).name], atol=0.1)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_rmu_by_the_models_own_hidden_states(weight: float) -> None:
    rmu = RMU(layer=0, steering=3.0, seed=5, retain_weight=weight)
    model, frozen = tiny_model(), tiny_model(seed=1)
    batch = TreeCollator(rmu.branches, feed_last=True)(rows())["tree"]

    def states(which: nn.Module, tree: Tree, branch: Branch) -> Tensor:
        out = which(torch.tensor([[*tree.prompt, *branch.ids]]), output_hidden_states=True)
        return out.hidden_states[1][0, len(tree.prompt) :][kept(branch)]

    u = torch.rand(32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    target = (3 * u / u.norm()).float()
    losses: dict[str, list[Tensor]] = {"forget": [], "retain": []}
    for tree, branch in batch.branches():
        aim = target if branch.name == "forget" else states(frozen, tree, branch).detach()
        losses[branch.name].append((states(model, tree, branch) - aim).square().mean())
    expected = sum(w * torch.stack(losses[n]).mean() for n, w in (("forget", 1.0), ("retain", weight)) if losses[n])
    expected.backward()
    own = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert "lm_head.weight" not in own
    model.zero_grad()
    attach(model), attach(frozen)
    loss = scored(rmu, model, frozen, batch, "tree")
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = {n: p.grad for n, p in model.named_parameters()}
    assert distance({n: ours[n] for n in own}, own) < 1e-5
    # those above are not touched, but have a gradient, or ranks would wait for each other
    assert all(g is not None and not g.any() for n, g in ours.items() if n not in own)


def test_hidden_states_that_are_not_there() -> None:
    model, batch = tiny_model(), TreeCollator(("forget",), feed_last=True)(rows())["tree"]
    attach(model)
    with pytest.raises(UserError, match=r"after 8 layers, but the model has only 2: set a lower objective\.layer"):
        ScoringEngine()(model, batch, RMU().reads())
    with pytest.raises(UserError, match=r"after 3 layers, but the model has only 2"):
        ScoringEngine()(model, batch, (Hidden(3),))
    with pytest.raises(ValueError, match="feed_last=True"):
        ScoringEngine()(model, TreeCollator(("forget",))(rows())["tree"], (Hidden(1, at="target"),))


@pytest.mark.parametrize("mode", ["tree", "padded"])
def test_a_branch_of_whole_texts_scores_every_token_but_the_first(mode: Mode) -> None:
    model, made = tiny_model(), rows()
    batch = TreeCollator(("forget", "retain_all"))(made)["tree"]
    expected = []
    for row in made:
        text = [*(row["retain_prompt_ids"] or row["prompt_ids"]), *row["retain_ids"]]
        logits = own_logits(model, Tree(text[:1], ()), Branch("", text[1:]))
        expected.append(logits.log_softmax(-1).gather(1, torch.tensor(text[1:])[:, None]).sum())
    attach(model)
    engine = ScoringEngine()
    engine.mode = mode
    scores = engine(model, batch)
    assert torch.allclose(scores.sum("retain_all"), torch.stack(expected), rtol=1e-5)
    assert scores.count("retain_all").sum().item() == batch.units["tokens:retain_all"] == sum(
        len(r["retain_prompt_ids"] or r["prompt_ids"]) + len(r["retain_ids"]) - 1 for r in made
    )  # fmt: skip


def test_totals_of_any_values_by_branch() -> None:
    batch = pack([Example((Tree([5, 6], (Branch("forget", [7, 8, 9], [1, 0, 1]), Branch("alternate", [3]))),))] * 2)
    scores = Scores({"logp": torch.zeros(6)}, batch.owner, batch.sequences, batch.lengths)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], requires_grad=True)
    assert scores.total("forget", values).tolist() == [3.0, 24.0]
    assert scores.total("alternate", values).tolist() == [4.0, 32.0]
    scores.total("forget", values).sum().backward()
    assert values.grad.tolist() == [1, 1, 0, 1, 1, 0]


def test_a_reference_with_hidden_states_is_the_frozen_policy() -> None:
    from contextlib import nullcontext

    from align.reference.policy import ReferencePolicy

    model = tiny_model()
    frozen = copy.deepcopy(model)
    attach(model), attach(frozen)
    read = Hidden(1, at="target")
    batch = TreeCollator(("forget", "retain"), feed_last=True)(rows())["tree"]
    reference = ReferencePolicy(ScoringEngine(), "copy", ("retain",), frozen)
    held = reference.scores(model, batch, compute=True, keep=False, autocast=nullcontext, hidden=(read,))
    policy = ScoringEngine()(model, batch, (LogProb(), read))
    assert set(held.sequences) == {"retain"}
    assert torch.allclose(held.of("retain", read.name), policy.of("retain", read.name), atol=1e-5)
    terms = RMU(layer=0)(policy, held)
    assert terms.losses[1].losses.abs().max() < 1e-10
