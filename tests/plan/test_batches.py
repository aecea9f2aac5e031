"""The micro-batches that are planned for, beside those that the trainer's loader gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_run import recipe, small_world

from align.data.load import Data, load_data
from align.data.tokens.tokenize import load_tokenizer
from align.plan.batches import Batches, batches
from align.plan.longest import longest_rows, with_steps
from align.recipe import Recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


def data_of(made: Recipe) -> Data:
    tokenizer = load_tokenizer(made.model, base=made.base, arguments={})
    return load_data(made, tokenizer, made.objective_value().branches, lambda line: None)


def planned(made: Recipe, processes: int = 1) -> Batches:
    return batches(made, data_of(made), made.training_arguments(), processes)


def positions(row: dict[str, Any]) -> int:
    return len(row["prompt_ids"]) - 1 + len(row["chosen_ids"]) + len(row["rejected_ids"])


def test_steps_examples_and_tokens(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, train={"max_steps": -1, "num_train_epochs": 2})
    found = planned(made)
    # 40 rows, 8 a step
    assert (found.rows, found.steps, found.examples, found.micro) == (40, 10, 8, 1)
    assert found.positions == 2 * sum(positions(row) for row in data_of(made).train)
    held_out = [positions(row) for row in data_of(made).held_out or []]
    assert found.evaluated == sum(held_out)
    assert found.held_out is not None
    assert found.held_out.input_ids.shape[1] == max(sum(held_out[:8]), sum(held_out[8:]))


def test_the_largest_micro_batch_is_the_largest_that_the_loader_gives(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, train={"max_steps": 7})
    rows, order = data_of(made).train, data_of(made).order
    assert order is not None
    steps = [order(0)[i : i + 8] for i in range(0, 40, 8)] + [order(1)[i : i + 8] for i in (0, 8)]
    most = max(sum(positions(rows[i]) for i in step) for step in steps)  # type: ignore[index]
    assert planned(made).tokens == most


def test_a_budget_of_tokens_makes_more_and_smaller_micro_batches(world: Path, tmp_path: Path) -> None:
    whole = planned(recipe(world, tmp_path, train={"max_steps": 5}))
    budget = whole.tokens // 2
    found = planned(recipe(world, tmp_path, train={"max_steps": 5, "max_tokens_per_microbatch": budget}))
    assert found.tokens <= budget
    assert found.micro >= 2
    assert (found.examples, found.positions) == (whole.examples, whole.positions)


def test_processes_share_a_step_out(world: Path, tmp_path: Path) -> None:
    train = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    found = planned(recipe(world, tmp_path, train=train), 4)
    assert (found.examples, found.micro) == (32, 2)


def test_a_forgotten_row_comes_with_its_retained_partner(world: Path, tmp_path: Path) -> None:
    objective = [{"name": "npo"}, {"name": "nll", "branch": "retain", "weight": 1.0}]
    data = {name: {"path": str(world / "qa.jsonl")} for name in ("forget", "retain")}
    lines = "".join(f'{{"question": "Question {i}:", "answer": " It is blue"}}\n' for i in range(8))
    (world / "qa.jsonl").write_text(lines)
    train = {"max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True}
    model = {"id": str(world / "model")}
    found = planned(
        Recipe.from_dict({"name": "r", "model": model, "data": data, "objective": objective, "train": train})
    )
    branches = [branch.name for _, branch in found.largest.branches()]
    assert branches.count("forget") == branches.count("retain") == 8


def longest(world: Path, objective: Any, **train: Any) -> Batches:
    """What is planned for rows that are not at hand, of at most 64 tokens, 4 in a micro-batch."""
    roles = ("forget", "retain") if objective[0]["name"] == "npo" else ("train",)
    data: dict[str, Any] = {role: {"path": str(world / "qa.jsonl")} for role in roles}
    made = Recipe.from_dict(
        {
            "name": "r",
            "model": {"id": str(world / "model")},
            "data": {**data, "max_length": 64},
            "objective": objective,
            "train": {"per_device_train_batch_size": 4, "use_cpu": True, **train},
        }
    )
    made = with_steps(made, 50, 2)
    return batches(made, longest_rows(), made.training_arguments(), 2)


def test_rows_that_are_not_at_hand_are_as_long_as_they_may_be(world: Path) -> None:
    pairs = longest(world, [{"name": "dpo"}], num_train_epochs=3)
    assert (pairs.tokens, pairs.rows, pairs.guessed) == (4 * (31 + 32 + 32), None, True)
    assert pairs.steps == 3 * 7  # 50 rows, 8 a step
    assert pairs.positions == 21 * 8 * 95
    assert longest(world, [{"name": "dpo"}], max_steps=5).steps == 5
    # a retained row has a prompt of its own
    forgetting = longest(world, [{"name": "npo"}, {"name": "nll", "branch": "retain"}])
    assert forgetting.tokens == 4 * (31 + 32 + 31 + 32)
    # a row has one labelled answer, and the one that belongs to another prompt
    labelled = longest(world, [{"name": "kto"}])
    assert labelled.tokens == 4 * (31 + 32 + 32)
