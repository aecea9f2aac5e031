"""The sentence with the command that goes on, by what is kept and by how the run was started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.runs.go_on import go_on, remember_command, started_with

ROOT = Path(__file__).parents[2]
START = ("align", "train", "my run.yaml", "name=a b")


def test_what_is_kept_decides_what_is_said(tmp_path: Path) -> None:
    words = "align train 'my run.yaml' 'name=a b'"
    assert go_on(None, START) == go_on(tmp_path, START) == f"Nothing was recorded yet. Start it again: {words}"
    (tmp_path / "recipe.lock.yaml").write_text("recipe: {}\nrun: abc\n")
    begins = f"The run had no checkpoint yet and begins anew with: {words} --resume"
    assert go_on(tmp_path, START) == go_on(tmp_path, (*START, "--resume")) == begins
    (tmp_path / "checkpoint-4").mkdir()  # a kill came in the middle of it
    assert go_on(tmp_path, START) == begins
    (tmp_path / "rounds").mkdir()
    assert go_on(tmp_path, START) == f"Finished stages are kept. Go on: {words} --resume"


def test_a_damaged_lock_file_costs_no_sentence(tmp_path: Path) -> None:
    (tmp_path / "recipe.lock.yaml").write_text("recipe: [")
    assert go_on(tmp_path, START) == "Go on: align train 'my run.yaml' 'name=a b' --resume"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the launcher's command from /proc")
def test_a_launcher_s_own_command_is_said_also_when_it_is_gone(tmp_path: Path) -> None:
    """The worker's parent is called as ``accelerate`` is, and has ended when the worker asks."""
    launcher, worker, out = tmp_path / "accelerate", tmp_path / "worker.py", tmp_path / "said"
    launcher.write_text(
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, {str(worker)!r}])\ntime.sleep(8)\n"
    )
    worker.write_text(
        "import os, time\nfrom pathlib import Path\nfrom align.runs.go_on import go_on, remember_command\n"
        f"parent = os.getppid()\nremember_command()\nos.kill(parent, 9)\n"
        f"while os.getppid() == parent: time.sleep(0.02)\nPath({str(out)!r}).write_text(go_on(None))\n"
    )
    env = {**os.environ, "RANK": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(launcher), "launch", "--num_processes", "2", "-m", "align.train", "r.yaml"]
    started = subprocess.Popen(command, env=env, cwd=ROOT)
    assert started.wait(30) == -9
    for _ in range(200):
        if out.exists() and out.read_text():
            break
        time.sleep(0.05)
    again = "accelerate launch --num_processes 2 -m align.train r.yaml"
    assert out.read_text() == f"Nothing was recorded yet. Start it again: {again}"


def test_one_process_was_started_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("ALIGN_COMMAND", raising=False)
    remember_command()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/align", "train", "r.yaml"])
    assert started_with() == ["align", "train", "r.yaml"]
    monkeypatch.setattr(sys, "argv", ["/x/align/train.py", "r.yaml"])
    assert started_with() == ["python", "-m", "align.train", "r.yaml"]
    monkeypatch.setenv("ALIGN_COMMAND", "align launch 'my run.yaml'")
    assert started_with() == ["align", "launch", "my run.yaml"]
