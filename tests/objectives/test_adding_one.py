"""A new loss touches one new file, one line, one case and what `make docs` writes: shown in a copy of the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "pyproject.toml",
    "docs/config.md",
    "docs/methods.md",
    "tests/conftest.py",
    "tests/tiny.py",
    "tests/training.py",
    "tests/zoo.py",
    "tests/docs/test_methods.py",
    "tests/objectives/cases.py",
    "tests/objectives/pair_cases.py",
    "tests/objectives/worked.py",
    "tests/objectives/test_objectives.py",
    "tests/objectives/test_pulls.py",
)
FILE = '''\
"""The square of the hinge loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Referenced

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class SquaredHinge(Referenced):
    title: ClassVar = "Squared hinge"
    paper: ClassVar = "none"
    equation: ClassVar = "loss = max(0, 1 - beta (d_w - d_l))^2"
    when: ClassVar = "To show that a new loss is one file."

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = ("2 * beta * (1 - m) * (m < 1)", "2 * beta * (1 - m) * (m < 1)")

    beta: Annotated[float, Field(gt=0, description="reciprocal of the margin")] = 0.1

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        return (1 - self.beta * (chosen - rejected)).relu() ** 2
'''
LINE = "from align.objectives.squared_hinge import SquaredHinge as SquaredHinge\n"
# m = 0.5 (1.25, -0.5)
CASE = """    "squared_hinge": (
        Case(SquaredHinge(beta=0.5), (0.140625, 1.5625), 0.8515625, (0.375, 1.25), (0.375, 1.25)),
    ),
"""
USE = """\
import json
from pathlib import Path

import pytest
from tiny import tiny_tokenizer
from training import history, trainer
from zoo import tiny_model

import align
from align.cli.main import main
from align.objectives import SquaredHinge

assert Path(align.__file__).parents[1] == Path(__file__).parents[1]  # the copy


def test_squared_hinge_trains(tmp_path):
    made = trainer(tmp_path, SquaredHinge(), max_steps=2, learning_rate=0.5)
    made.train()
    (first,), (second,) = history(made, "loss")
    assert first == pytest.approx(1.0, abs=1e-6)  # policy and reference agree
    assert second != first


def test_squared_hinge_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.save_pretrained("model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained("model")
    rows = [{"prompt": f"What is {i}?", "chosen": f" It is {i}.", "rejected": f" It was {i}, once."} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    (tmp_path / "r.yaml").write_text(
        "name: new\\nmodel: {id: model}\\ndata: {train: {path: pairs.jsonl}}\\n"
        "objective: {name: squared_hinge, beta: 0.3}\\ntrain: {max_steps: 2, per_device_train_batch_size: 4}\\n"
    )
    assert main(["check", "r.yaml"]) == 0
    assert main(["explain", "squared_hinge"]) == 0
    assert main(["list", "objectives"]) == 0
    said = capsys.readouterr().out
    assert "chosen up by 2 * beta * (1 - m) * (m < 1)" in said
    assert "  squared_hinge  Squared hinge\\n" in said
"""
TESTS = "squared_hinge or fresh or every_objective_has or row_for_every"


def edit(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))


def run(folder: Path, *words: str) -> str:
    """What Python says on standard output, with the copy before the project."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def changed(folder: Path) -> set[str]:
    """Files of the copy that are new or differ from the project's, but for what Python and hypothesis leave behind."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    own = {file for file in files if file.parts[0] != ".hypothesis"}
    return {str(f) for f in own if not (ROOT / f).is_file() or (ROOT / f).read_bytes() != (folder / f).read_bytes()}


def test_a_new_loss_is_one_file_one_line_one_case_and_generated_docs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "align", tmp_path / "align", ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    objectives, cases = tmp_path / "align" / "objectives", tmp_path / "tests" / "objectives" / "pair_cases.py"
    (objectives / "squared_hinge.py").write_text(FILE)
    first = "from align.objectives.dpo import DPO as DPO\n"
    edit(objectives / "__init__.py", first, first + LINE)
    first = "PAIR_CASES: dict[str, tuple[Case, ...]] = {\n"
    edit(cases, first, first + CASE)
    edit(cases, "    SimPO,\n", "    SimPO,\n    SquaredHinge,\n")
    (tmp_path / "tests" / "test_use.py").write_text(USE)

    run(tmp_path, "-c", "from align.cli.config_page import write_pages; write_pages()")  # of make docs
    said = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "-k", TESTS)
    # worked numbers twice, pulls, gradients, nine extremes, values, splitting; texts twice, gradients of both at two
    # seeds; a case for each; freshness and rows; training and the command line
    assert "\n26 passed" in said, said

    assert changed(tmp_path) == {
        "align/objectives/squared_hinge.py",
        "align/objectives/__init__.py",
        "tests/objectives/pair_cases.py",
        "docs/config.md",
        "docs/methods.md",
        "tests/test_use.py",
    }
    (row,) = [line for line in (tmp_path / "docs/methods.md").read_text().split("\n") if "squared_hinge" in line]
    assert row.startswith(
        "| `squared_hinge` | `loss = max(0, 1 - beta (d_w - d_l))^2` | `2 * beta * (1 - m) * (m < 1)`"
    )
