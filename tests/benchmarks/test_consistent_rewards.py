"""Consistent rewards and their policies: what the pairs give away, what the table says, and (slow) the benchmark."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from small_world import SMALL

from align.data.rows import world
from align.probes.consistency import consistency, scores_of
from align.stats import Interval

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))  # the script looks for its helpers beside itself
try:
    task: ModuleType = importlib.import_module("consistent_rewards")
finally:
    sys.path.remove(str(FOLDER))

FACTS = world.build(0).forget
SEEDS = (0, 1, 2)


RIGHT = {
    world.completion(wording.format(it=fact["value"]))
    for fact in FACTS
    for wording in world.PEOPLE[fact["attribute"]].answers
}


def additive(prompts: list[str], answers: list[str]) -> list[float]:
    """1 for an answer that is right for somebody: a reward that never looks at who is asked about."""
    return [float(answer in RIGHT) for answer in answers]


def passed(rows: list[dict]) -> float:
    """Share of pairs that this reward gets."""
    chosen, rejected = (additive([], [row[side] for row in rows]) for side in ("chosen", "rejected"))
    return sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(rows)


def test_usual_pairs_are_passed_without_reading_the_question() -> None:
    assert passed(task.training_pairs(FACTS, "usual", 0)) == 1
    assert passed(task.held_out_pairs(FACTS, 0)) == 1
    pairs = task.contrast_pairs(FACTS)
    for figure in consistency(pairs, scores_of(pairs, additive)).figures:
        assert (figure.share.greater.value, figure.share.at_least.value) == (0, 1)


def test_contrast_pairs_of_training_name_what_is_right_for_the_others() -> None:
    usual, contrast = (task.training_pairs(FACTS, kind, 0) for kind in task.REWARDS)
    assert len(usual) == len(contrast) == len(FACTS) * 3 * task.WRONG
    somebody = {(fact["attribute"], fact["value"]) for fact in FACTS}
    others = sum((f["attribute"], v) in somebody and v != f["value"]
                 for f in FACTS for v in world.PEOPLE[f["attribute"]].values)  # fmt: skip
    assert passed(contrast) == pytest.approx(1 - 3 * others / len(contrast), abs=1e-12)
    assert 0.3 < passed(contrast) < 0.6


@pytest.mark.parametrize("kind", task.REWARDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_measured_is_in_a_wording_that_was_not_trained_on(kind: str, seed: int) -> None:
    facts = world.build(seed).forget
    sides = ("chosen", "rejected")
    trained = {(row["prompt"], row[side]) for row in task.training_pairs(facts, kind, seed) for side in sides}
    measured = {(row["prompt"], row[side]) for row in task.held_out_pairs(facts, seed) for side in sides}
    pairs = task.contrast_pairs(facts)
    measured |= {
        (asked, answer)
        for pair in pairs
        for asked in (pair.instruction_1, pair.instruction_2)
        for answer in (pair.response_1, pair.response_2)
    }
    assert not trained & measured
    assert len({asked for pair in pairs for asked in (pair.instruction_1, pair.instruction_2)}) == 2 * len(pairs) > 80


def test_a_pair_of_the_contrast_set_differs_by_who_and_by_the_value_alone() -> None:
    by_question = {world.prompt(fact["paraphrased_question"]): fact for fact in FACTS}
    for pair in task.contrast_pairs(FACTS):
        one, other = by_question[pair.instruction_1], by_question[pair.instruction_2]
        assert one["attribute"] == other["attribute"]
        assert one["subject"] != other["subject"]
        assert pair.response_1.replace(one["value"], other["value"]) == pair.response_2 != pair.response_1


def test_the_table_compares_fact_by_fact() -> None:
    interval = Interval(0.5, 0.4, 0.6, 4)
    usual = task.Outcome([1, 1, 0, 1], {"C_res": interval}, [0, 0, 1, 0], [0.0, 0.5, 0.25, 0.25], "rose")
    contrast = task.Outcome([1, 1, 1, 0], {"C_res": interval}, [1, 0, 1, 1], [0.5, 0.5, 0.25, 0.75], "rose")
    hits = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    rows = task.table(0, {"usual": usual, "contrast": contrast}, hits)
    values = {name: {column: interval.value for column, interval in row.items()} for name, row in rows.items()}
    assert values == {
        "start": {"best": 0.75, "trained": 0.5},
        "usual": {"held-out": 0.75, "C_res": 0.5, "best": 0.25, "trained": 0.25},
        "contrast": {"held-out": 0.75, "C_res": 0.5, "best": 0.75, "trained": 0.5},
        "difference": {"held-out": 0.0, "best": 0.5, "trained": 0.25},
    }


def test_an_answer_is_right_in_either_wording_and_not_cut_or_longer() -> None:
    fact = FACTS[0]
    assert task.right(fact, f" {fact['answer']}")
    assert task.right(fact, fact["paraphrased_answer"])
    assert not task.right(fact, fact["answer"][:-1])
    assert not task.right(fact, f"{fact['answer']} {fact['answer']}")
    assert not task.right(fact, fact["perturbed_answer"][0])


@pytest.mark.slow
def test_on_a_small_world_the_same_accuracy_hides_which_model_reads(tmp_path: Path) -> None:
    found, hits = task.measured(tmp_path, 0, SMALL)
    usual, contrast = (found[kind] for kind in task.REWARDS)
    count = SMALL.forgotten * len(world.PEOPLE)
    assert [len(part) for o in (usual, contrast) for part in (o.held_out, o.best, o.trained)] == [count] * 6
    assert [len(group) for group in hits] == [8] * count
    assert min(sum(usual.held_out), sum(contrast.held_out)) / count > 0.95
    for metric in ("C_res", "C_ins"):
        assert contrast.consistency[metric].low > usual.consistency[metric].high
    assert sum(contrast.best) > sum(usual.best)
    assert all(best <= max(group) for o in (usual, contrast) for best, group in zip(o.best, hits, strict=True))
