"""TRL's CPOTrainer and ORPOTrainer: the same loss and the same gradient of every weight on one batch of real rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from oracle import dpo_settings, oracle_model, short_answers, tokenizer_of
from torch import Tensor
from training import arguments, same_order
from zoo import distance

from align.objectives import CPO, ORPO, Objective, SimPO
from align.trainers.preference import PreferenceTrainer

PAIRS = 4


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return short_answers(PAIRS)


@pytest.fixture(scope="module")
def ours(rows: list[dict], tmp_path_factory: Any) -> Any:
    tokenizer = tokenizer_of(rows)
    return PreferenceTrainer(
        oracle_model(tokenizer),
        SimPO(),
        arguments(tmp_path_factory.mktemp("align"), per_device_train_batch_size=PAIRS, max_steps=1),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        order=same_order(rows),
        max_length=None,
    )


def build(kind: Any, settings: Any, rows: list[dict], folder: Path) -> tuple[Any, Any]:
    """A trainer of TRL's experimental ones, and its batch of all rows."""
    tokenizer = tokenizer_of(rows)
    given = dpo_settings(folder, per_device_train_batch_size=PAIRS, max_steps=1)
    known = {name: value for name, value in given.items() if name in settings.__dataclass_fields__}
    made = kind(
        oracle_model(tokenizer),
        args=settings(**known, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return made, made.data_collator([made.train_dataset[i] for i in range(PAIRS)])


@pytest.fixture(scope="module")
def cpo(rows: list[dict], tmp_path_factory: Any) -> tuple[Any, Any]:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    trainer, batch = build(CPOTrainer, CPOConfig, rows, tmp_path_factory.mktemp("cpo"))
    trainer.simpo_gamma = 0.5  # which it only has where it was made for simpo
    return trainer, batch


@pytest.fixture(scope="module")
def orpo(rows: list[dict], tmp_path_factory: Any) -> tuple[Any, Any]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return build(ORPOTrainer, ORPOConfig, rows, tmp_path_factory.mktemp("orpo"))


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(theirs: tuple[Any, Any], ours: Any, objective: Objective, **settings: Any) -> None:
    trainer, batch = theirs
    for name, value in settings.items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    expected, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    ours.objective = objective
    inputs = ours.make_collator()([ours.train_dataset[i] for i in range(PAIRS)])
    (inputs,), _ = ours.get_batch_samples(iter([inputs]), 1, ours.args.device)
    found = ours.compute_loss(ours.model, inputs)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=0)
    mine, other = gradients(ours.model, found), gradients(trainer.model, expected)
    assert distance(mine, other) <= 1e-6
    for name, gradient in other.items():
        assert (mine[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("cpo_alpha", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("form", ["sigmoid", "hinge", "ipo"])
def test_cpo(cpo: Any, ours: Any, form: Any, cpo_alpha: float) -> None:
    settings = {"loss_type": form, "beta": 0.02, "label_smoothing": 0.0, "alpha": 0.0, "cpo_alpha": cpo_alpha}
    assert_same(cpo, ours, CPO(form, beta=0.02, cpo_alpha=cpo_alpha), **settings)


def test_cpo_with_label_smoothing(cpo: Any, ours: Any) -> None:
    settings = {"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.2, "alpha": 0.0, "cpo_alpha": 1.0}
    assert_same(cpo, ours, CPO(beta=0.1, label_smoothing=0.2), **settings)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0, -0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo(cpo: Any, ours: Any, smoothing: float, alpha: float) -> None:
    settings = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "cpo_alpha": 0.0}
    simpo = SimPO(beta=2.0, gamma=0.6, label_smoothing=smoothing, alpha=alpha)
    assert_same(cpo, ours, simpo, label_smoothing=smoothing, alpha=alpha, **settings)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_orpo(orpo: Any, ours: Any, beta: float) -> None:
    assert_same(orpo, ours, ORPO(beta=beta), beta=beta)


def test_orpo_of_the_answer_alone_is_another_loss(orpo: Any, ours: Any) -> None:
    with pytest.raises(AssertionError):
        assert_same(orpo, ours, ORPO(positions="answer"), beta=0.1)
