"""The quickstart's unlearning part, and what it says about its numbers. Only claims that held on every seed tried."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.data.rows import world
from align.eval.log_read import read_log
from align.eval.tofu_metrics import metrics
from align.recipe import load_recipe
from align.recipes.quickstart.demo import demonstrate
from align.recipes.quickstart.running import RECIPES, calm, learn_base, learn_people, run_recipe
from align.recipes.quickstart.unlearning import RETAIN_LOG, UNLEARNING, Unlearned, answered, prepare, unlearn_with
from align.recipes.quickstart.unlearning_summary import LIMITS, SHOWN, outcome, unlearning_summary
from align.report.trajectory import draw_trajectories, trajectory
from align.runs.directory import RunDirectory

TINY = world.Size(people=8, forgotten=3, background=2, strangers=1, base_epochs=10, tune_epochs=10)


def claims(full: dict[str, float], ascent: dict[str, float], npo: dict[str, float]) -> None:
    """What held on every seed and size."""
    assert ascent["utility"] < 0.05
    assert npo["utility"] > 0.8 * full["utility"]
    assert npo["utility"] - ascent["utility"] > 0.4
    assert npo["forget_probability"] < full["forget_probability"] / 2


@pytest.mark.slow
def test_ascent_ruins_a_small_model_and_npo_with_retained_rows_does_not(tmp_path: Path) -> None:
    made = world.build(0, TINY)
    with calm():
        base = learn_base(tmp_path, made)
        retain = learn_people(tmp_path, made, base=base, facts=made.retain, name="people")
        full = learn_people(tmp_path, made, base=base, facts=made.full, name="full")
        kept = prepare(tmp_path, made, retain)
        runs = {title: unlearn_with(title, tmp_path, made, full) for title in ("GradAscent", "NPO + retain")}
    readings = {title: trajectory(RunDirectory(run).metrics()) for title, run in runs.items()}
    ascent, npo = readings.values()
    assert [r["step"] for r in ascent] == [r["step"] for r in npo] == [0, 30, 48]  # 60 rows, 8 a step, 6 epochs
    assert ascent[0] == npo[0]  # the same model, measured twice
    claims(ascent[0], ascent[-1], npo[-1])
    # the full model was taught what the retain model was not, and both know the rest
    assert ascent[0]["forget_probability"] > 2 * kept["forget_probability"]
    assert ascent[0]["utility_retain"] == pytest.approx(kept["utility_retain"], abs=0.1)
    assert ascent[0]["forget_quality"] < 1e-3
    # what the run recorded is what its log gives against the retain model's
    target = read_log(tmp_path / RETAIN_LOG)
    for title, run in runs.items():
        result = metrics(read_log(run / "eval" / "TOFU_EVAL.json"), target, seed=None)
        last = readings[title][-1]
        assert result.values["forget_quality"] == pytest.approx(last["forget_quality"], rel=1e-9, abs=0)
        assert result.values["model_utility"] == pytest.approx(last["utility"], rel=1e-9, abs=0)
    assert [len(target.sets[name]) for name in ("forget", "retain", "ra", "wf")] == [60, 100, 40, 48]
    assert target.sets["forget"].ground_truth == [fact["answer"] for fact in made.forget]
    assert answered(tmp_path / RETAIN_LOG)[1] == made.retain[0]["answer"]


@pytest.mark.slow
def test_the_whole_quickstart(tmp_path: Path) -> None:
    """What ``make quickstart`` runs, and every claim that it makes."""
    lines: list[str] = []
    done = demonstrate(tmp_path, seed=0, echo=lines.append).unlearned
    first, last = done.full, {title: readings[-1] for title, readings in done.runs.items()}
    assert list(last) == list(UNLEARNING)
    claims(first, last["GradAscent"], last["NPO + retain"])
    assert first["forget_quality"] < 1e-6
    assert last["NPO + retain"]["forget_quality"] > 1e5 * first["forget_quality"]
    assert all(readings[0] == first for readings in done.runs.values())
    assert any(SHOWN in line for line in lines)
    said = "\n".join(lines).replace(str(tmp_path), "runs/quickstart")
    assert max(map(len, said.splitlines())) <= 140
    assert Unlearned(**json.loads((tmp_path / "unlearning.json").read_text())) == replace(
        done, answers={title: list(pair) for title, pair in done.answers.items()}
    )
    assert png_size(tmp_path / "unlearning.png") == (1350, 780)
    # another model that never saw the six people cannot be told from the first
    with calm():
        places = {"model.id": str(tmp_path / "learn-base/model"), "data.train.path": str(tmp_path / "people.jsonl")}
        second = run_recipe("learn_people", tmp_path / "second", 100, places)
        (tmp_path / "of-second").mkdir()
        prepare(tmp_path / "of-second", world.build(0), second / "model")
    result = metrics(read_log(tmp_path / "of-second" / RETAIN_LOG), read_log(tmp_path / RETAIN_LOG), seed=None)
    assert 0.05 < result.values["forget_quality"] < 1


def png_size(path: Path) -> tuple[int, int]:
    png = path.read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def reading(step: int, quality: float, utility: float, **more: float) -> dict[str, float]:
    usual = {"utility_retain": 0.7, "forget_probability": 0.5}
    return {"step": step, "forget_quality": quality, "utility": utility, **usual, **more}


def made_up(**ends: dict[str, float]) -> Unlearned:
    """Readings as they usually come out; ``ends`` replace the last ones of ``ascent`` and ``npo``."""
    full = reading(0, 2e-13, 0.6, forget_probability=0.97)
    runs = {title: [full, reading(30, 1e-3, 0.4), reading(90, 0.3, 0.59)] for title in UNLEARNING}
    runs["GradAscent"][-1] = ends.get("ascent", reading(90, 0.0, 0.0))
    runs["NPO + retain"][-1] = ends.get("npo", reading(90, 0.48, 0.55))
    answers = dict.fromkeys(("retain model", *runs), ("one", "\ufffdtwo\nlines"))
    return Unlearned(reading(0, 1.0, 0.61), runs, answers)


def test_forget_quality_never_stands_without_utility() -> None:
    made = world.build(0)
    lines = unlearning_summary(made_up(), made)
    assert "What was forgotten, and what it cost (6 of 24 people, after 90 steps)" in lines[1]
    table = {line[2:17].strip(): line[17:].split() for line in lines[3:10]}
    assert list(table) == ["full model", "retain model", *UNLEARNING]
    assert table["full model"] == ["2e-13", "0.600", "0.700", "0.970"]
    assert table["retain model"] == ["itself", "0.610", "0.700", "0.500"]
    assert table["NPO + retain"] == ["0.48", "0.550", "0.700", "0.500"]
    assert table["GradAscent"][:2] == ["0", "0.000"]
    shown = next(line for line in lines if line.startswith("  FLAT ") and "one" in line)
    assert shown.split() == ["FLAT", "one", "?two", "lines"]
    assert [line.strip() for line in lines[-len(LIMITS) :]] == list(LIMITS)


@pytest.mark.parametrize(
    ("ends", "as_before"),
    [
        ({}, True),
        ({"npo": reading(90, 3e-8, 0.49)}, True),  # 1.5e5 times the start, and 0.81 of the utility
        ({"npo": reading(90, 1e-8, 0.49)}, False),
        ({"npo": reading(90, 0.9, 0.47)}, False),
        ({"ascent": reading(90, 0.9, 0.06)}, False),
    ],
)
def test_another_outcome_is_admitted(ends: dict[str, Any], as_before: bool) -> None:
    said = outcome(made_up(**ends))
    assert SHOWN in said
    assert said.startswith("Shown, as on seeds 0, 1 and 2") == as_before
    assert said.startswith("This run differs") != as_before


def test_the_picture_of_ruined_and_of_perfect_models(tmp_path: Path) -> None:
    for quality in (0.0, 2e-13, 0.5):
        done = made_up()
        full = {**done.full, "forget_quality": quality}
        draw_trajectories(tmp_path / "some.png", full, done.retain, done.runs)
        assert png_size(tmp_path / "some.png") == (1350, 780)


def test_the_recipes_differ_in_what_they_are_about_alone() -> None:
    recipes = {title: load_recipe(RECIPES / f"{name}.yaml") for title, (name, _) in UNLEARNING.items()}
    rates = {title: recipe.train["learning_rate"] for title, recipe in recipes.items()}
    assert rates == dict.fromkeys(UNLEARNING, 4e-4) | {"FLAT": 2e-4}
    for title, (_, named) in UNLEARNING.items():
        data = recipes[title].data
        assert (data.retain is not None, data.alternates is not None) == (
            "data.retain.path" in named,
            "data.alternates.path" in named,
        )
    dumped = [recipe.dump() for recipe in recipes.values()]
    for recipe in dumped:
        for key in ("name", "output", "objective", "reference"):
            recipe.pop(key)
        for key in ("retain", "alternates", "partner"):
            recipe["data"].pop(key, None)
        recipe["train"].pop("learning_rate")
    assert all(recipe == dumped[0] for recipe in dumped)
