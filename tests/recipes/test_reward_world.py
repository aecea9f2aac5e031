"""recipes/reward/world.yaml on a smaller world: it learns whose answer is right; and (slow) what its header claims."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
from small_world import SMALL, teach, trained, trained_reward

from align.data.rows import world
from align.judges.reward import RewardModel
from align.recipe import load_recipe
from align.recipe.recipe import packaged_recipes
from align.stats import wilson


def header() -> str:
    return packaged_recipes()["reward/world"].read_text(encoding="utf-8").split("\nname:")[0]


def longer(rows: list[dict]) -> float:
    """Share of pairs whose chosen answer has more characters, ties as half: the accuracy of a null model."""
    gaps = [len(row["chosen"]) - len(row["rejected"]) for row in rows]
    return sum((gap > 0) + 0.5 * (gap == 0) for gap in gaps) / len(gaps)


def test_it_learns_far_more_than_a_rule_that_measures_length(reward: tuple[Path, dict, list[str]]) -> None:
    _, evaluation, lines = reward
    rows = world.rows("preferences_reworded", 0, asdict(SMALL))
    found = wilson(evaluation["eval_rewards/accuracies"] * len(rows), len(rows))
    null = longer(rows)
    assert found.low > max(null, 1 - null) + 0.1
    assert any(line.endswith("has no head that scores answers, so a new one is drawn (seed 0)") for line in lines)


def test_it_reads_who_is_asked_about(reward: tuple[Path, dict, list[str]]) -> None:
    """An answer's score falls when the same is asked about somebody else, which no score of the answer alone does."""
    judge = RewardModel(str(reward[0]), say=lambda _: None)
    facts = world.build(0, SMALL).forget
    asked = [fact["question"].replace(fact["subject"], "{who}") for fact in facts]
    others = [
        next(o["subject"] for o in facts if o["attribute"] == fact["attribute"] and o["value"] != fact["value"])
        for fact in facts
    ]
    answers = [world.completion(fact["paraphrased_answer"]) for fact in facts]
    own = judge.score([world.prompt(fact["question"]) for fact in facts], answers)
    foreign = judge.score([world.prompt(q.format(who=who)) for q, who in zip(asked, others, strict=True)], answers)
    assert wilson(sum(a > b for a, b in zip(own, foreign, strict=True)), len(facts)).low > 0.6


def test_the_header_knows_what_length_alone_would_get() -> None:
    null = longer(world.rows("preferences_reworded"))
    assert f"where the longer answer is\n#            right on {null:.2f} of them" in header()
    assert f"the shorter one on {1 - null:.2f} (in characters)" in header()


@pytest.mark.slow
def test_it_gets_what_its_header_promises(tmp_path: Path) -> None:
    promised = re.search(r"held-out accuracy ([\d.]+) \[([\d.]+), ([\d.]+)\] on 120 pairs", header())
    assert promised is not None
    _, low, high = map(float, promised.groups())
    folder = teach(tmp_path, world.Size())
    result, _ = trained("reward/world", {"model.id": folder / "model"}, tmp_path / "run")
    assert low <= result.evaluation["eval_rewards/accuracies"] <= high


@pytest.mark.slow
def test_more_epochs_do_not_lose_what_was_learned(
    taught: Path, reward: tuple[Path, dict, list[str]], tmp_path: Path
) -> None:
    result, _ = trained_reward(taught, tmp_path / "whole")
    assert result.evaluation["eval_rewards/accuracies"] >= reward[1]["eval_rewards/accuracies"]


@pytest.mark.parametrize("name", ["superhf", "inpo"])
def test_the_small_online_recipes_ask_the_run_that_it_leaves(name: str) -> None:
    judge = load_recipe(f"online/world-{name}").judge
    assert judge is not None
    assert judge.reward == load_recipe("reward/world").output.path == "runs/reward/world"
