"""The working directory is no place that modules come from: whoever sends a folder sends no program with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = ("yaml", "torch", "psutil", "pydantic", "transformers")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with files that are called as packages are."""
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(f"open('imported-{name}', 'w').close()\nraise SystemExit('imported')\n")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["align", "check", "none.yaml"],
        ["align.train", "none.yaml"],
        ["align.runs.workers", "run", "--module", "align.nothing"],
    ],
    ids=lambda words: words[0],
)
def test_modules_of_the_working_directory_are_not_imported(words: list[str], here: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert not list(here.glob("imported-*")), done.stderr
    if words[0] != "align.runs.workers":
        assert done.returncode == 2
        assert done.stderr == "none.yaml  no such file or packaged recipe. All: align list recipes.\n"


def test_they_would_be(here: Path) -> None:
    """What the other test relies on: Python looks there first."""
    subprocess.run([sys.executable, "-m", "json.tool", "--help"], cwd=here, capture_output=True, check=True)
    (here / "own.py").write_text("import yaml\n")
    done = subprocess.run([sys.executable, "-m", "own"], cwd=here, capture_output=True, text=True, check=False)
    assert done.stderr == "imported\n"
