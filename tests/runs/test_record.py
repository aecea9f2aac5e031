"""Reading a run's directory: what comes of each file, and of one that is damaged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.errors import UserError
from align.runs.record import load_run

RECIPE: dict[str, Any] = {"name": "first", "objective": {"name": "dpo", "beta": 0.1}, "data": {"train": []}}


def run(folder: Path, recipe: dict[str, Any] = RECIPE, **lock: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.lock.yaml").write_text(yaml.safe_dump({"recipe": recipe, **lock}))
    return folder


def lines(file: Path, *values: Any) -> None:
    file.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def test_every_file_comes_back(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", processes=2)
    lines(folder / "metrics.jsonl", {"step": 0}, {"step": 5, "loss": 0.5})
    # a line separator of Unicode is part of a text and ends no line
    lines(folder / "answers.jsonl", {"step": 0, "prompt": "a", "text": "one\u2028two"})
    for name, value in (("verdict", {"steps": 5}), ("facts", {"cost": {"seconds": 1}}), ("probe", {"history": []})):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "eval").mkdir()
    (folder / "eval" / "step-0.json").write_text('{"step": 0}')
    found = load_run(folder)
    assert (found.name, found.kind, found.steps, found.finished) == ("first", "preference", 5, True)
    assert found.lock["processes"] == 2
    assert [record["step"] for record in found.metrics] == [0, 5]
    assert found.answers[0]["text"] == "one\u2028two"
    assert (found.facts, found.probe) == ({"cost": {"seconds": 1}}, {"history": []})
    assert found.evaluations == {"step-0": {"step": 0}}
    assert found.notes == []


def test_a_run_that_has_just_started_has_its_recipe_alone(tmp_path: Path) -> None:
    found = load_run(run(tmp_path / "run"))
    assert (found.verdict, found.finished, found.steps, found.probe) == (None, False, 0, None)
    assert (found.metrics, found.answers, found.facts, found.evaluations) == ([], [], {}, {})


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ({"objective": {"name": "ipo"}}, "preference"),
        ({"objective": [{"name": "npo", "weight": 1.0}, {"name": "nll"}], "data": {"forget": [{}]}}, "unlearning"),
        ({"objective": {"name": "bradley_terry"}}, "reward"),
        ({"objective": [{"name": "superhf"}]}, "survivors"),
        ({"objective": {"name": "dpo"}, "rounds": {"count": 2}}, "rounds"),
        ({"objective": {"name": "mine:Loss"}}, "preference"),
        ({}, "preference"),
    ],
)
def test_the_kind_of_a_run_whose_lock_does_not_say_it(recipe: dict[str, Any], kind: str, tmp_path: Path) -> None:
    assert load_run(run(tmp_path / "run", recipe)).kind == kind


def test_the_lock_knows_the_kind_of_an_objective_that_only_its_author_has(tmp_path: Path) -> None:
    assert load_run(run(tmp_path / "run", {"objective": {"name": "mine:Loss"}}, kind="reward")).kind == "reward"


def test_rounds_bring_their_trainings(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", {**RECIPE, "rounds": {"count": 3}})
    lines(folder / "metrics.jsonl", {"round": 1, "steps": 4}, {"round": 2, "steps": 5})
    for number in (2, 1):
        lines(run(folder / "rounds" / f"{number:02d}" / "train") / "metrics.jsonl", {"step": number})
    found = load_run(folder)
    assert (found.kind, found.steps) == ("rounds", 9)
    assert [one.steps for one in found.rounds] == [1, 2]


def test_broken_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "wb") as file:
        file.write(
            b'{"step": 1}\n[1]\n\xff\xfe\n{"loss": 2}\n{"step": "two"}\n' + b"[" * 100_000 + b'\n{"step": 3}\n{"st'
        )
    found = load_run(folder)
    assert [record["step"] for record in found.metrics] == [1, 3]
    said = f"{folder}/metrics.jsonl: 6 lines are no JSON object or have no step and were left out."
    assert found.notes == [said]


def test_a_step_is_a_whole_number_that_a_run_can_reach(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    steps = ["NaN", "Infinity", "-5", "1.5", "true", "[1]", "null", '"7"', "1" + "0" * 400]
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 1}}\n' for step in [*steps, "3"]))
    found = load_run(folder)
    assert [record["step"] for record in found.metrics] == [3]
    assert found.notes == [f"{folder}/metrics.jsonl: 9 lines are no JSON object or have no step and were left out."]


def test_facts_of_the_wrong_kind_are_left_out_and_named(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    (folder / "facts.json").write_text('{"data": [1], "cost": NaN, "environment": {"device": "cpu"}}')
    found = load_run(folder)
    assert found.facts == {"environment": {"device": "cpu"}}
    said = "is no JSON object and was left out."
    assert found.notes == [f"{folder}/facts.json: {key} {said}" for key in ("data", "cost")]


def test_one_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    said = f"{folder}/metrics.jsonl: 1 line is cut off at the end and was left out."
    assert load_run(folder).notes == [said]


@pytest.mark.parametrize("name", ["facts.json", "probe.json", "eval/step-5.json"])
@pytest.mark.parametrize("content", ["{", "[1, 2]", "", "\udcff"])
def test_a_damaged_file_is_left_out_and_named(name: str, content: str, tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    (folder / "eval").mkdir()
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    found = load_run(folder)
    assert (found.facts, found.probe, found.evaluations) == ({}, None, {})
    assert found.notes == [f"{folder}/{name} is damaged and was left out: it holds no JSON object."]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("recipe.lock.yaml", "{: [", "not valid YAML: while parsing a flow node"),
        ("recipe.lock.yaml", "recipe: 3", "it holds no recipe"),
        ("recipe.lock.yaml", "[]", "it holds no recipe"),
        ("verdict.json", "{", "it holds no JSON object"),
        ("verdict.json", '{"findings": [1]}', "its findings are no JSON objects"),
        ("verdict.json", '{"findings": {"learned": "yes"}}', "its findings are no JSON objects"),
    ],
)
def test_without_a_lock_or_a_verdict_there_is_nothing_to_say(name: str, content: str, why: str, tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(UserError) as error:
        load_run(folder)
    assert str(error.value).startswith(f"{folder}/{name} is damaged ({why}")
    assert str(error.value).endswith("). Put it back from a copy.")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "one")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("file", "is a file; name a run's directory."),
        ("empty", "is empty: no run has started there."),
        ("runs", "is no run: it holds no recipe.lock.yaml. These in it are: one."),
        ("emtpy", "no such folder. Did you mean 'empty'? Name a run's directory."),
    ):
        with pytest.raises(UserError) as error:
            load_run(tmp_path / name)
        assert str(error.value).removeprefix(str(tmp_path / name)).lstrip(": ") == said


def test_long_lines_and_many_lines_take_seconds(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "w") as file:
        file.writelines(json.dumps({"step": i, "loss": 0.5, "rewards/margins": 1.25}) + "\n" for i in range(100_000))
        file.write(json.dumps({"step": 100_000, "text": "x" * 2**20}) + "\n")
    began = time.monotonic()
    assert load_run(folder).steps == 100_000
    assert time.monotonic() - began < 10
