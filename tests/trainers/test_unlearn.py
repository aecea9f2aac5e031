"""UnlearnTrainer: the loss of a step by hand, partners through accumulation and resume, what the reference scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from training import arguments, history, weights, word_tokenizer
from zoo import tiny_model, token_ids

from align.errors import UserError
from align.objectives import DPO, KL, NLL, NPO, GradAscent, IdkDPO, Objective, WeightedSum
from align.trainers.unlearn import UnlearnTrainer


def rows(count: int, branch: str, seed: int = 0, *others: str) -> Dataset:
    ids = token_ids(seed)
    table = [
        {"prompt_ids": ids(1 + 5 * i % 6), **{f"{b}_ids": ids(1 + 3 * i % 7) for b in (branch, *others)}, "row": i}
        for i in range(count)
    ]
    return Dataset.from_list(table)


def plus(*parts: tuple[Objective, float]) -> WeightedSum:
    return WeightedSum(parts)


NPO_RT = plus((NPO(beta=0.5), 1.0), (NLL(branch="retain"), 2.0))


def unlearner(folder: Path, objective: Any = NPO_RT, *, model: Any = None, retain: Any = "some", **options: Any) -> Any:
    own = ("partner", "alternates_each", "store_dir", "peft_config", "max_tokens_per_microbatch", "train_dataset")
    mine = {k: options.pop(k) for k in own if k in options}
    kept = rows(11, "retain", 1) if retain == "some" else retain
    return UnlearnTrainer(
        tiny_model() if model is None else model,
        objective,
        arguments(folder, **options),
        train_dataset=mine.pop("train_dataset", rows(20, "forget")),
        retain_dataset=kept,
        processing_class=word_tokenizer(),
        **mine,
    )


def nll(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Summed token losses of an answer, from the model's plain logits."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, :-1].double()
    return -logits.log_softmax(-1)[torch.arange(len(prompt) - 1, len(logits)), answer].sum()


def test_first_loss_and_gradient_by_hand(tmp_path: Path) -> None:
    model = tiny_model()
    forget, retain = rows(20, "forget"), rows(11, "retain", 1)
    trainer = unlearner(tmp_path, model=model, partner="index", max_steps=1)
    taken = [int(place) for place in trainer.pairs.order(trainer_order(trainer))(0)[:8]]
    plain = tiny_model()
    s = [nll(plain, *(forget[place % 20][k] for k in ("prompt_ids", "forget_ids"))) for place in taken]
    kept = [retain[place % 20 % 11] for place in taken]
    tokens = sum(len(row["retain_ids"]) for row in kept)
    likelihood = sum(nll(plain, row["prompt_ids"], row["retain_ids"]) for row in kept) / tokens
    # at the start theta is the reference: the loss is 2 ln 2 / beta, its gradient that of the summed log-prob
    loss = 2 * math.log(2) / 0.5 + 2 * likelihood
    (-sum(s) / 8 + 2 * likelihood).backward()
    gradient = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm()
    trainer.train()
    found, norm = history(trainer, "loss", "grad_norm")[0]
    assert found == pytest.approx(loss.item(), rel=1e-5)
    assert norm == pytest.approx(gradient.item(), rel=1e-4)


def trainer_order(trainer: Any) -> Any:
    from align.data.batches.packing import shuffled
    from align.trainers.mixin import order_seed

    return shuffled(len(trainer.pairs), order_seed(trainer.args))


@pytest.mark.parametrize("objective", [NPO_RT, plus((GradAscent(), 1.0), (KL(branch="retain"), 1.0))])
def test_accumulation_and_packing_change_nothing(tmp_path: Path, objective: Objective) -> None:
    whole = unlearner(tmp_path / "a", objective, max_steps=4)
    whole.train()
    parts = unlearner(
        tmp_path / "b", objective, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    parts.train()
    packed = unlearner(tmp_path / "c", objective, max_steps=4, max_tokens_per_microbatch=60)
    packed.train()
    for other in (parts, packed):
        assert torch.allclose(weights(whole), weights(other), rtol=1e-5, atol=1e-6)
        for mine, theirs in zip(history(whole, "loss"), history(other, "loss"), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)


def test_resume_in_the_middle_of_an_epoch_draws_the_same_partners(tmp_path: Path) -> None:
    """Five steps an epoch; saved after step 7, so two steps into the second epoch."""
    options: dict[str, Any] = {"max_steps": 10, "per_device_train_batch_size": 4}
    straight = unlearner(tmp_path / "a", **options)
    straight.train()
    unlearner(tmp_path / "b", save_strategy="steps", save_steps=7, **options).train()
    resumed = unlearner(tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-7"))
    assert torch.equal(weights(straight), weights(resumed))
    assert history(straight, "loss", "grad_norm") == history(resumed, "loss", "grad_norm")
    # and it is the partners that make the difference
    fixed = unlearner(tmp_path / "c", partner="fixed", **options)
    fixed.train()
    assert not torch.equal(weights(straight), weights(fixed))


def test_the_reference_scores_only_what_is_compared_with_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = unlearner(tmp_path / "a", max_steps=10, per_device_train_batch_size=4, store_dir=store)
    first.train()
    # twenty rows to forget, each computed once in two epochs, and the four of the check at the start; no retained row
    assert first.reference.rows_computed == 24
    second = unlearner(tmp_path / "b", max_steps=10, per_device_train_batch_size=4, store_dir=store)
    assert second.reference.model is None  # nothing is missing, so no second model is held in memory
    second.train()
    assert second.reference.rows_computed == 0
    for mine, theirs in zip(history(second, "loss"), history(first, "loss"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


def test_an_adapter_learns_the_same_loss(tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    plain, adapted = (unlearner(tmp_path / str(i), max_steps=6, **({"peft_config": lora} if i else {})) for i in (0, 1))
    for trainer in (plain, adapted):
        trainer.train()
    assert history(adapted, "loss")[0] == pytest.approx(history(plain, "loss")[0], rel=1e-5)
    assert history(adapted, "loss")[-1][0] < history(adapted, "loss")[0][0]


def test_alternates_take_turns(tmp_path: Path) -> None:
    """Each row stands twice in succession, with another alternate; epochs take the one and the other in turn."""
    table = rows(10, "forget", 0, "alternate")
    twice = table.select([i for i in range(10) for _ in (0, 1)])
    trainer = unlearner(
        tmp_path,
        IdkDPO(),
        train_dataset=twice,
        retain=None,
        alternates_each=2,
        per_device_train_batch_size=5,
        max_steps=4,
    )
    order = trainer.pairs.order(trainer_order(trainer))
    first, second = sorted(order(0)), sorted(order(1))
    assert [place // 2 for place in first] == list(range(10)) == [place // 2 for place in second]
    assert sorted([*first, *second]) == list(range(20))
    trainer.train()
    assert history(trainer, "loss")[0][0] == pytest.approx(20 * math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "options", "says"),
    [
        (DPO(), {}, "UnlearnTrainer trains on the branches forget, alternate, retain"),
        (NPO_RT, {"retain": None}, "give them as retain_dataset"),
        (NPO(), {}, "the objective reads no retained rows"),
        (IdkDPO(), {"retain": None}, "the prepared rows have no column alternate_ids"),
        (IdkDPO(), {"retain": None, "train_dataset": Dataset.from_list([{"prompt": "w3", "completion": "w4"}])},
         "neither a column alternate nor alternates"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, objective: Objective, options: dict[str, Any], says: str) -> None:
    own = {k: options[k] for k in options if k != "train_dataset"}
    with pytest.raises(UserError, match=says):
        UnlearnTrainer(
            tiny_model(),
            objective,
            arguments(tmp_path),
            train_dataset=options.get("train_dataset", rows(4, "forget")),
            retain_dataset=own.get("retain", rows(3, "retain")),
            processing_class=word_tokenizer(),
        )


def test_defaults(tmp_path: Path) -> None:
    trainer = unlearner(tmp_path, None)
    assert trainer.objective == plus((NPO(), 1.0), (NLL(branch="retain"), 1.0))
    assert unlearner(tmp_path, None, retain=None).objective == NPO()
