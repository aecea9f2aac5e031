"""``align launch``: what it prints before it starts anything, and its mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from round_runs import make_world, write_recipe
from saved_model import save_model

from align.cli.main import main
from align.recipe import recipes_folder

FOLDER = recipes_folder() / "accelerate"
RECIPE = """
name: r
model: {id: model}
data: {train: {path: pairs.jsonl}}
objective: {name: dpo}
train: {use_cpu: true}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    save_model(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return str(tmp_path / "recipe.yaml")


def test_what_fits_is_chosen_and_said(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", recipe, "--dry-run"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "cpu1: there is no accelerator, and one process uses all cores"
    assert second.startswith("ACCELERATE_USE_CPU=true ")
    assert second.endswith(f" launch --config_file {FOLDER}/cpu1.yaml --num_processes 1 -m align.train {recipe}")
    assert main(["launch", recipe, "--processes", "3", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(
        "cpu2-ddp: there is no accelerator, and several processes were asked for\n"
    )


def test_rounds_are_placed_before_their_pairs_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on two GPUs: the rows are prompts alone, and every pair counts as long as it may be."""
    monkeypatch.setattr("align.runs.memory.accelerators", lambda: ((80 << 30, 132),) * 2)
    file = str(write_recipe(make_world(tmp_path), tmp_path / "out", train={"use_cpu": False}))
    assert main(["launch", file, "--allow-code", "--dry-run"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    # 600 MiB of a GPU's context, and a tiny model
    assert first == "ddp: it takes 0.6 GiB on each of 2 GPUs of 80.0 GiB"
    assert second.endswith(f"{FOLDER}/ddp.yaml --num_processes 2 -m align.train {file} --allow-code")


def test_a_command_for_another_machine_is_shown(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(Path(recipe).parent / "model")  # that machine will have it
    words = ["train.max_steps=3", "--on", "zero3", "--processes", "8", "--resume", "--dry-run", "--json"]
    assert main(["launch", recipe, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"].endswith(
        f"{FOLDER}/zero3.yaml --num_processes 8 -m align.train {recipe} train.max_steps=3 --resume"
    )
    assert {key: found[key] for key in ("on", "processes", "exit_code")} == {
        "on": "zero3",
        "processes": 8,
        "exit_code": 0,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--on", "zero33"], "--on zero33: no such configuration or file. Did you mean 'zero3'? All: cpu1, cpu2-ddp, "),
        (["--on", ""], "--on : no such configuration or file. All: cpu1, cpu2-ddp, "),
        (["--processes", "0"], "--processes 0: expected a whole number of 1 or more."),
        (["model.id=nothing"], "model.id: 'nothing': no such folder"),
    ],
)
def test_mistakes_start_nothing(recipe: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", recipe, *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(said)
    assert out == ""


@pytest.mark.parametrize(("have", "wrong"), [("0.18.1", True), ("0.19.3", True), ("0.19.4", False), ("0.20.0", False)])
def test_doctor_and_a_start_refuse_a_faulty_deepspeed(have: str, wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from align import versions
    from align.cli.doctor import Diagnosis, _optional
    from align.errors import UserError
    from align.runs.launch import check_launch

    monkeypatch.setattr(versions, "installed", lambda name: have)
    found = Diagnosis()
    _optional(found)
    asked = {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}
    state = SimpleNamespace(num_processes=2, distributed_type="DEEPSPEED", backend="gloo")
    if not wrong:
        assert not found.problems
        check_launch(state, asked)
        return
    (line,) = found.problems
    assert (line.topic, line.cure) == ("deepspeed", "pip install 'deepspeed>=0.19.4'")
    with pytest.raises(UserError) as caught:
        check_launch(state, asked)
    assert str(caught.value) == (
        f"DeepSpeed {have} has a known fault, gradients under ZeRO-2 that are wrong without a word: pip install "
        "'deepspeed>=0.19.4'."
    )
