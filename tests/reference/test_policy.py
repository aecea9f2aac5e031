"""The reference is what the policy was at the start, however it is kept."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from training import history, pairs, trainer
from zoo import own_rows, tiny_model

from align.data.batches.collator import TreeCollator
from align.engine.layout import TreeBatch
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.objectives import DPO, KL, WeightedSum
from align.reference.frozen import frozen
from align.reference.policy import ReferencePolicy, choose
from align.reference.store import LogProbStore, sequence_key

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])


def batch_of(rows: Any) -> TreeBatch:
    return TreeCollator(("chosen", "rejected"))([dict(r) for r in rows])["tree"]


def plain(model: Any, batch: TreeBatch) -> Tensor:
    with torch.no_grad():
        return torch.cat(own_rows(model, batch))


def kept(made: Any, batch: TreeBatch) -> Tensor:
    """What a trainer's reference says of a batch now."""
    compute = made.reference.missing(batch)
    scores = made.reference.scores(made.model, batch, compute=compute, keep=False, autocast=contextlib.nullcontext)
    return scores.tokens["logp"]


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({}, "copy"),
        ({"reference": "copy"}, "copy"),
        ({"peft_config": LORA}, "adapter_off"),
        ({"peft_config": LORA, "reference": "copy"}, "copy"),
        ({"peft_config": LORA, "reference": "adapter_off"}, "adapter_off"),
    ],
    ids=["auto", "copy", "lora-auto", "lora-copy", "lora-off"],
)
def test_the_reference_stays_while_the_policy_moves(options: dict[str, Any], strategy: str, tmp_path: Path) -> None:
    batch = batch_of(pairs(6))
    start = plain(tiny_model(), batch)
    made = trainer(tmp_path, DPO(0.3), learning_rate=0.2, **options)
    made.train()
    assert made.reference.strategy == strategy
    assert made.start_gap == pytest.approx(0.0, abs=1e-5)
    assert (kept(made, batch) - start).abs().max() < 1e-5
    attach(made.model)
    moved = ScoringEngine()(made.model, batch).tokens["logp"]
    assert (moved - start).abs().max() > 1e-3
    assert history(made, "loss")[0][0] == pytest.approx(0.6931472, rel=1e-5)


def test_a_policy_that_was_changed_in_memory_is_its_own_reference(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    model = type(tiny_model()).from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.lm_head.weight += 0.05 * torch.randn(
            model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    batch = batch_of(pairs(6))
    changed = plain(model, batch)
    assert (changed - plain(tiny_model(), batch)).abs().max() > 1e-2
    made = trainer(tmp_path / "run", DPO(0.3), model=model)
    made.train()
    assert (kept(made, batch) - changed).abs().max() < 1e-5
    assert history(made, "rewards/margins")[0] == [0.0]


def test_an_adapter_that_came_with_the_policy_belongs_to_the_reference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    batch = batch_of(pairs(6))
    start = plain(model, batch)
    assert (start - plain(tiny_model(), batch)).abs().max() > 0.05
    made = trainer(tmp_path, DPO(0.3), model=model, learning_rate=0.2)
    made.train()
    assert made.reference.strategy == "copy"
    assert (kept(made, batch) - start).abs().max() < 1e-5


def test_switching_off_an_adapter_that_already_speaks_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    made = trainer(tmp_path, DPO(), model=model, reference="adapter_off")
    with pytest.raises(UserError, match=r"At the start the reference \(strategy adapter_off\) differs from the policy"):
        made.train()


def test_which_strategy_is_taken() -> None:
    model = tiny_model()
    assert choose("auto", model, fresh_adapter=False) == "copy"
    assert choose("auto", model, fresh_adapter=True) == "adapter_off"
    assert choose("copy", model, fresh_adapter=True) == "copy"
    assert choose("auto", get_peft_model(tiny_model(), LORA), fresh_adapter=False) == "copy"
    with pytest.raises(UserError, match="the model has no adapter"):
        choose("adapter_off", model, fresh_adapter=False)


def test_a_frozen_copy_shares_nothing() -> None:
    model = tiny_model().train()
    copied = frozen(model)
    assert not copied.training
    assert not any(p.requires_grad for p in copied.parameters())
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in copied.parameters()}
    tied = frozen(tiny_model("llama-tied"))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_a_shared_copy_has_parameters_of_its_own_over_the_same_memory() -> None:
    model = get_peft_model(tiny_model("llama-tied"), LORA).train()
    made = frozen(model, shared=True)
    places = [p.data_ptr() for p in model.parameters()]
    assert [p.data_ptr() for p in made.parameters()] == places
    assert {id(p) for p in made.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    assert {p.requires_grad for p in made.parameters()} == {False}
    assert {p.requires_grad for p in model.parameters()} == {True, False}
    assert (made.training, model.training) == (False, True)
    made.to("meta")  # as when its weights come from the first process
    assert [p.data_ptr() for p in model.parameters()] == places


def test_the_reference_of_a_distribution_is_the_start_too(tmp_path: Path) -> None:
    batch = batch_of(pairs(6))
    start = tiny_model()
    for options in ({}, {"peft_config": LORA}):
        made = trainer(
            tmp_path, WeightedSum(((DPO(0.3), 1.0), (KL(), 0.5))), learning_rate=0.2, eval_dataset=pairs(6), **options
        )
        made.train()
        found = made.evaluate()["eval_kl_forward/chosen"]
        total, count = 0.0, 0
        for tree, branch in batch.branches():
            if branch.name == "chosen":
                row = torch.tensor([[*tree.prompt, *branch.ids]])
                p, q = (m(row).logits[0, len(tree.prompt) - 1 : -1].log_softmax(-1) for m in (made.model, start))
                total += (q.exp() * (q - p)).sum().item()
                count += len(branch.ids)
        assert total > 1e-4
        assert found == pytest.approx(total / count, rel=1e-3)


# ---- the check at the start


def test_a_store_with_wrong_values_is_refused(tmp_path: Path) -> None:
    rows = pairs(20)
    digest = trainer(tmp_path / "a", DPO(), rows, store_dir=tmp_path / "store").digest
    wrong = LogProbStore(tmp_path / "store", digest)
    batch = batch_of(rows)
    for (tree, branch), values in zip(batch.branches(), own_rows(tiny_model(), batch), strict=True):
        wrong.put([sequence_key(tree, branch)], [len(values)], values + 0.01)
    wrong.flush()
    made = trainer(tmp_path / "b", DPO(), rows, store_dir=tmp_path / "store")
    with pytest.raises(UserError, match="At the start the reference store differs from the policy by") as caught:
        made.train()
    assert "is not what the policy was at the start. Remove the store's folder and start again." in str(caught.value)
    assert made.state.global_step == 0


def test_a_reference_that_is_not_the_start_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, DPO())
    with torch.no_grad():
        made.model.lm_head.weight += 0.01
        made.model.lm_head.weight[5] += 0.3
    with pytest.raises(UserError, match=r"the reference \(strategy copy\) differs.*Use reference.strategy: copy"):
        made.train()


def test_a_row_that_goes_missing_is_said_and_not_made_up(tmp_path: Path) -> None:
    model = tiny_model()
    attach(model)
    batch = batch_of(pairs(2))
    policy = ReferencePolicy(ScoringEngine(), "copy", ("chosen", "rejected"), None, LogProbStore(tmp_path, "0" * 64))
    assert policy.missing(batch)
    with pytest.raises(UserError, match="a row is missing now, and no reference model was loaded"):
        policy.scores(model, batch, compute=True, keep=False, autocast=contextlib.nullcontext)


def test_dummies_are_never_computed_into_the_store(tmp_path: Path) -> None:
    model = tiny_model()
    attach(model)
    store = LogProbStore(tmp_path, "0" * 64)
    policy = ReferencePolicy(ScoringEngine(), "copy", ("chosen", "rejected"), frozen(model), store)
    dummy = TreeCollator(("chosen", "rejected"))([])["tree"]
    assert not policy.missing(dummy)
    for compute in (True, False):
        scores = policy.scores(model, dummy, compute=compute, keep=False, autocast=contextlib.nullcontext)
        assert scores.sum("chosen").shape == (0,)
    assert (len(store), policy.rows_computed) == (0, 0)


def test_masked_answers_are_stored_by_their_targets(tmp_path: Path) -> None:
    rows = [{**dict(r), "chosen_mask": [(i + 1) % 2 for i in range(len(r["chosen_ids"]))]} for r in pairs(6)]
    batch = batch_of(rows)
    model = tiny_model()
    own = plain(model, batch)
    attach(model)
    store = LogProbStore(tmp_path, "0" * 64)
    policy = ReferencePolicy(ScoringEngine(), "copy", ("chosen", "rejected"), frozen(model), store)
    for compute in (True, False):
        assert policy.missing(batch) is compute
        scores = policy.scores(model, batch, compute=compute, keep=False, autocast=contextlib.nullcontext)
        assert np.allclose(scores.tokens["logp"].numpy(), own.numpy(), atol=1e-5)
