"""``align plan``: what it prints, its exit codes, and its mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from round_runs import make_world, write_recipe
from small_run import recipe, small_world

from align.cli.main import main
from align.errors import Exit


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def file(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "recipe.yaml"
    made.write_text(yaml.safe_dump(recipe(world, tmp_path).dump()))
    return str(made)


def huge(world: Path, tmp_path: Path) -> list[str]:
    """An override: the model of the small world with the sizes of a large one, and no weights."""
    folder = tmp_path / "huge"
    folder.mkdir()
    for part in (world / "model").iterdir():
        if part.suffix != ".safetensors":
            (folder / part.name).write_bytes(part.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": 16384, "intermediate_size": 57344, "num_hidden_layers": 20, "num_attention_heads": 128}
    config |= {**sizes, "num_key_value_heads": 8, "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config))
    return [f"model.id={folder}", "model.dtype=auto"]


def test_the_table(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", file]) == Exit.OK
    out = capsys.readouterr().out
    assert re.search(r"^Plan  tiny      1 process, cpu of \d+\.\d GiB$", out, re.MULTILINE)
    assert re.search(r"^  batch      8 rows a step in 1 micro-batch, the largest of \d+ tokens$", out, re.MULTILINE)
    assert "  steps      10 over 40 rows, " in out
    assert re.search(r"^    total +0\.\d\d    of \d+\.\d GiB free: fits$", out, re.MULTILINE)
    assert "no run of this shape was seen here" in out
    assert re.search(r"^  disk       model \d+\.\d MiB, 3 checkpoints of", out, re.MULTILINE)


def test_what_does_not_fit_ends_with_3_and_what_would(
    file: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*huge(world, tmp_path), "--device", "80GiB"]
    assert main(["plan", file, *words]) == Exit.DOES_NOT_FIT
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("What needs less, the smallest change first:")
    assert any("of 80.0 GiB free: does not fit" in line for line in lines)
    assert lines[-1].endswith("fits")
    assert all("fits" not in line for line in lines[start + 1 : -1])
    sizes = [float(re.search(r"([\d,]+\.\d) GiB", line)[1].replace(",", "")) for line in lines[start + 1 :]]  # type: ignore[index]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 80
    # what was said to fit does: its words are those of the command
    change = lines[-1].strip().split("   ")[0]
    settings, _, launch = change.partition(", and align launch FILE ")
    assert main(["plan", file, *words, *settings.split(", "), *launch.split()]) == Exit.OK


@pytest.mark.slow
def test_json_has_the_changes_and_no_table(
    file: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", file, *huge(world, tmp_path), "--device", "80GiB", "--json"]) == Exit.DOES_NOT_FIT
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False
    # 20 layers of 16384 wide, as many weights as Llama 3.1 70B with a small vocabulary
    layer = 2 * 16384 * 16384 + 2 * 16384 * 1024 + 3 * 16384 * 57344 + 2 * 16384
    assert 20 * layer < found["weights"]["all"] < 20 * layer + 10**8
    assert found["memory"]["total"] > 16 * found["weights"]["all"]
    assert [one["fits"] for one in found["changes"]] == [False] * (len(found["changes"]) - 1) + [True]


def test_for_a_machine_that_is_not_here(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", file, "--on", "fsdp2", "--processes", "8", "--device", "A100-40GB"]) == Exit.OK
    out = capsys.readouterr().out
    assert "8 processes under fsdp2, A100-40GB of 39.4 GiB" in out
    assert "64 rows a step in 1 micro-batch on each of 8 processes" in out


def test_of_rounds_the_training_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """23 prompts in two rounds are 11 a round, and as many pairs at most: 2 steps of 8, in one of two epochs 4."""
    world = make_world(tmp_path)
    train = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 8}
    made = write_recipe(world, tmp_path / "out", rounds={"count": 2}, train=train)
    words = ["plan", str(made), "--allow-code"]
    assert main(words) == Exit.OK
    out = capsys.readouterr().out
    assert re.search(r"^  steps      4 over rows that are not at hand, ", out, re.MULTILINE)
    assert "the training of one round of 2, with at most 11 pairs; what sampling and judging take is not in it" in out
    # a pair is as long as data.max_length allows: 32 tokens of its prompt, 32 of each answer
    assert f"the largest of {8 * (32 - 1 + 2 * 32)} tokens" in out
    assert main([*words, "rounds.prompts=20"]) == Exit.USAGE
    assert capsys.readouterr().err == (
        "2 rounds of 20 fresh prompts each need 40, and there are 23. Lower rounds.prompts or rounds.count, or add "
        "prompts.\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "80"], "--device 80: expected a memory such as 80GiB, or one of cpu, H200"),
        (["--on", "fsdp22"], "--on fsdp22: no such configuration or file. Did you mean 'fsdp2'?"),
        (["--processes", "0"], "--processes 0: expected a whole number of 1 or more."),
        (["model.id=nothing"], "model.id: 'nothing': no such folder"),
    ],
)
def test_mistakes(file: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", file, *words]) == Exit.USAGE
    assert capsys.readouterr().err.startswith(said)
