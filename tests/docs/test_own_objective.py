"""The objective of one's own in docs/methods.md, as it stands there: checked, explained, trained, resumed, named."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.cli.main import main
from align.errors import UserError
from align.eval.finished_run import FinishedRun
from align.train import main as launched

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
NOT_ALLOWED = (
    "my_losses:SquaredHinge is Python code, and code is only run where it is allowed: read it, then add --allow-code "
    "to the command."
)
RECIPE = """\
name: own
model: {id: model, dtype: float32}
data: {train: {path: pairs.jsonl}, max_length: 64}
OBJECTIVE
reference: {store: false}
train: {max_steps: STEPS, per_device_train_batch_size: 4, use_cpu: true, learning_rate: 1e-2, logging_steps: 1,
  save_strategy: steps, save_steps: 1, gradient_checkpointing: false}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example of the page beside a tiny model, pairs and a recipe; its module is forgotten afterwards."""
    section = PAGE.read_text(encoding="utf-8").partition("## Objectives of your own")[2]
    code, line = re.findall(r"```(?:python|yaml)\n(.*?)```", section, flags=re.DOTALL)
    assert code.count("\n") <= 12
    (tmp_path / "my_losses.py").write_text(code)
    (tmp_path / "own.yaml").write_text(RECIPE.replace("OBJECTIVE", line.strip()).replace("STEPS", "2"))
    rows = [{"prompt": f"What is {i}?", "chosen": f" It is {i}.", "rejected": f" It was {i * i}."} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_losses", None)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "own.yaml"],
        ["train", "own.yaml", "--resume"],
        ["check", "own.yaml"],
        ["explain", "my_losses:SquaredHinge"],
    ],
)
def test_code_is_only_run_where_it_is_allowed(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    place = "" if words[0] == "explain" else "own.yaml:4  objective.name: "
    assert (out, err.split("\n")[0]) == ("", place + NOT_ALLOWED)
    assert "my_losses" not in sys.modules


def test_the_example_is_explained_checked_trained_and_resumed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "my_losses:SquaredHinge", "--allow-code"]) == 0
    assert "needs     chosen, rejected; a reference\n  reduction mean over pairs\n" in capsys.readouterr().out
    assert main(["check", "own.yaml", "--allow-code"]) == 0
    capsys.readouterr()
    # as accelerate launch starts it
    assert launched(["own.yaml", "--allow-code"]) == 0
    run = folder / "runs" / "own"
    lock = yaml.safe_load((run / "recipe.lock.yaml").read_text())["recipe"]
    shared = {"calibrate": False, "ld_alpha": None, "use_weighting": False}
    own = {"name": "my_losses:SquaredHinge", "weight": 1.0, "beta": 0.3, **shared}
    assert lock["objective"] == own
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(record for record in records if "loss" in record)
    assert first["loss"] == pytest.approx(1.0, abs=1e-6)  # policy and reference agree
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    card = (run / "README.md").read_text()
    assert "- **my_losses:SquaredHinge** (`my_losses:SquaredHinge`: " in card
    assert "\n- my_losses" not in card  # no tag
    assert "objective   my_losses:SquaredHinge (weight 1.0, " in _said(capsys, "show", "runs/own")
    with pytest.raises(UserError, match=r"recipe\.lock\.yaml  objective\.name: my_losses:SquaredHinge is Python code"):
        FinishedRun.at("runs/own")  # what align eval does with a run
    found = FinishedRun.at("runs/own", allow_code=True).recipe
    assert found is not None
    assert found.dump() == lock
    before = load_file(run / "checkpoint-1" / "model.safetensors")
    # a run that ended after its first step goes on to the same end
    (run / "verdict.json").unlink()
    for file in (run / "checkpoint-2").iterdir():
        file.unlink()
    last = load_file(run / "model" / "model.safetensors")
    assert any((last[name] != before[name]).any() for name in before)
    assert main(["train", "own.yaml", "--resume"]) == 2
    assert NOT_ALLOWED in capsys.readouterr().err
    assert main(["train", "own.yaml", "--resume", "--allow-code"]) == 0
    assert "resuming from checkpoint-1" in capsys.readouterr().out
    again = load_file(run / "model" / "model.safetensors")
    assert all((last[name] == again[name]).all() for name in last)


def test_a_loss_that_is_averaged_already_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (folder / "my_losses.py").read_text()
    (folder / "my_losses.py").write_text(code.replace("** 2", ".mean()"))
    assert main(["train", "own.yaml", "--allow-code"]) == 2
    sentence = r"SquaredHinge\.losses gave values of shape \[\]; expected the loss of each pair, \[\d\], neither summed"
    assert re.match(sentence + r" nor averaged\.\n$", capsys.readouterr().err)


def test_a_loss_that_fails_is_told_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (folder / "my_losses.py").read_text()
    (folder / "my_losses.py").write_text(code.replace("** 2", ".squared()"))
    line = 1 + next(i for i, text in enumerate(code.split("\n")) if "** 2" in text)
    assert main(["train", "own.yaml", "--allow-code"]) == 2
    assert capsys.readouterr().err == (
        f"The objective failed in my_losses.py, line {line}: AttributeError: 'Tensor' object has no attribute "
        "'squared'.\n"
    )


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("def losses(", "def loss(", "SquaredHinge does not say its loss: write the method losses."),
        (
            "beta:",
            "scale:",
            "The objective failed in my_losses.py, line",
        ),
    ],
)
def test_a_class_that_lacks_something_is_told(
    before: str, after: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (folder / "my_losses.py").read_text()
    assert before in code
    (folder / "my_losses.py").write_text(code.replace(before, after))
    if after == "scale:":
        (folder / "own.yaml").write_text((folder / "own.yaml").read_text().replace("beta: 0.3", "scale: 0.3"))
    for command in (["train", "own.yaml"], ["explain", "my_losses:SquaredHinge", "--logic"]):
        assert main([*command, "--allow-code"]) == 2
        assert capsys.readouterr().err.startswith(sentence)


def test_the_example_is_read_as_a_formula(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "my_losses:SquaredHinge", "--logic"]) == 2
    assert capsys.readouterr().err == NOT_ALLOWED + "\n"
    said = _said(capsys, "explain", "my_losses:SquaredHinge", "--logic", "--allow-code")
    assert said.startswith("my_losses:SquaredHinge cannot be read as a formula: no two sets of rows over W and L")
    code = (folder / "my_losses.py").read_text()
    (folder / "my_losses.py").write_text(code.replace(".relu() ** 2", ".relu()"))
    sys.modules.pop("my_losses")
    said = _said(capsys, "explain", "my_losses:SquaredHinge", "--logic", "--allow-code")
    expected = "{name: logic, preset: DPO, link: hinge, beta: 10, probability: sequence, weight: 0.1}"
    assert f"    objective: {expected}\n" in said


def _said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out
