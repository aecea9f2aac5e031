"""``align show RUN`` on directories of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.cli.main import main

RECIPE = {
    "name": "first",
    "model": {"id": "some/model", "lora": {"rank": 4}},
    "objective": {"name": "dpo", "beta": 0.1},
    "data": {"train": [{"path": "rows.jsonl"}], "held_out": [{"id": "some/rows"}]},
}


def interval(value: float) -> dict[str, Any]:
    return {"value": value, "low": value, "high": value, "n": 8}


def run(folder: Path, records: list[dict[str, Any]], verdict: dict[str, Any] | None = None, **recipe: Any) -> str:
    folder.mkdir()
    (folder / "recipe.lock.yaml").write_text(yaml.safe_dump({"recipe": RECIPE | recipe}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if verdict is not None:
        (folder / "verdict.json").write_text(json.dumps(verdict))
    return str(folder)


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(("show", *words))
    out, err = capsys.readouterr()
    return code, out, err


def records(steps: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": 0.7 - step / 1000, "probe": {"chosen": interval(-step / 10)}}
        for step in range(0, steps + 1, 10)
    ]


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = {"findings": {"learned": {"word": "yes", "text": "held-out accuracy 0.8"}}}
    name = run(tmp_path / "dpo", records(100), verdict)
    code, out, err = call(capsys, name)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{name}: finished after 100 steps"
    for said in (
        "  objective   dpo (beta 0.1)",
        "  model       some/model, an adapter",
        "  data        train rows.jsonl; held_out some/rows",
        "  learned       yes           held-out accuracy 0.8",
        f"  {name}/metrics.jsonl",
    ):
        assert said in lines
    table = lines[next(i for i, text in enumerate(lines) if text.split()[:2] == ["step", "loss"]) :][1:9]
    assert [text.split()[0] for text in table] == ["0", "10", "30", "40", "60", "70", "90", "100"]
    assert table[-1].split()[4] == "-10.0"
    data = json.loads(call(capsys, name, "--json")[1])
    assert (data["finished"], data["steps"], len(data["probe"]), data["last"]["step"]) == (True, 100, 11, 100)


def test_a_killed_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = run(tmp_path / "dpo", records(20))
    with open(tmp_path / "dpo" / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')
    out = call(capsys, name)[1]
    assert out.startswith(f"{name}: not finished: 20 steps recorded, the last sign of it ")
    assert "there is no checkpoint yet. Unless it still runs, go on with the command" in out
    assert f"  warning     {name}/metrics.jsonl: 1 line is cut off at the end and was left out." in out.splitlines()


def test_an_unlearning_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": 5, "loss": 1.0, "p/forget": 0.25, "evaluation": {"forget_quality": 1e-5, "utility": 0.5}}]
    name = run(tmp_path / "npo", rows, data={"forget": [{"world": "forget"}]}, objective=[{"name": "npo"}])
    lines = call(capsys, name)[1].splitlines()
    assert [text.split() for text in lines if "utility" in text] == [["step", "forget_quality", "utility"]]
    assert "   5           1e-05      0.5" in lines
    assert next(text for text in lines if "p(forget)" in text).split()[:3] == ["step", "loss", "p(forget)"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ((), "{}/x: no such folder. Name a run's directory."),
        (("x/",), "{}/x is empty: no run has started there."),
        (("x",), "{}/x is a file; name a run's directory."),
        (("x/y.txt",), "{}/x is no run: it holds no recipe.lock.yaml."),
        (("x/a/recipe.lock.yaml",), "{}/x is no run: it holds no recipe.lock.yaml. These in it are: a."),
        (("recipe.lock.yaml", "x/w"), "{0}/x is no run: it holds no recipe.lock.yaml. It belongs to {0}: name that."),
        (("xy/",), "{}/x: no such folder. Did you mean 'xy'? Name a run's directory."),
    ],
)
def test_what_is_no_run(made: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("")
    assert call(capsys, str(tmp_path / "x")) == (2, "", said.format(tmp_path) + "\n")


@pytest.mark.parametrize("damaged", ["recipe.lock.yaml", "verdict.json"])
def test_a_damaged_run(damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = run(tmp_path / "dpo", records(10), {})
    (tmp_path / "dpo" / damaged).write_text("{: [")
    code, _, err = call(capsys, name)
    assert code == 2
    assert err.startswith(f"{name}/{damaged} is damaged (")
