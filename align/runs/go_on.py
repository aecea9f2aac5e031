"""How to go on with a run that ended before its end: the command, word for word."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from align.errors import UserError
from align.runs.directory import LOCK, RunDirectory

RESUME = "--resume"
COMMAND = "ALIGN_COMMAND"  # the environment variable in which a launcher of ours leaves what it was started with
# how launchers are called, as a program and as a module
_LAUNCHERS = {
    "accelerate": ["accelerate"],
    "accelerate.commands.launch": ["accelerate", "launch"],
    "torchrun": ["torchrun"],
    "torch.distributed.run": ["torchrun"],
}


def go_on(run: Path | None, command: Sequence[str] = ()) -> str:
    """A sentence with the command that goes on with ``run``, or that starts it again where nothing is kept.

    Args:
        run: the run's directory; None where the recipe was not read yet.
        command: what started the run; by default what this process or its launcher was started with.
    """
    words = [word for word in (command or started_with()) if word != RESUME]
    again = shlex.join(words)
    if run is None or not (run / LOCK).exists():
        return f"Nothing was recorded yet. Start it again: {again}"
    again = f"{again} {RESUME}"
    if (run / "rounds").is_dir():
        return f"Finished stages are kept. Go on: {again}"
    try:
        found = RunDirectory(run, writer=False).checkpoints()
    except UserError:  # the lock file is damaged, which is said when the run goes on
        return f"Go on: {again}"
    if not found:
        return f"The run had no checkpoint yet and begins anew with: {again}"
    return f"Go on from {found[-1].name}: {again}"


def remember_command() -> None:
    """Keep what the launcher was started with: it may be gone when that is asked for."""
    if "RANK" in os.environ:
        os.environ.setdefault(COMMAND, shlex.join(started_with()))


def started_with() -> list[str]:
    """The command of this process; of a process that a launcher started, the launcher's."""
    if COMMAND in os.environ:
        return shlex.split(os.environ[COMMAND])
    if "RANK" not in os.environ:
        name = Path(sys.argv[0]).name
        start = ["align"] if name in ("align", "__main__.py") else ["python", "-m", "align.train"]
        return [*start, *sys.argv[1:]]
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        words = []
    named = [Path(word).name for word in words]
    found = next((i for i, name in enumerate(named) if name in _LAUNCHERS), None)
    if found is None:
        return ["accelerate", "launch", "-m", "align.train", *sys.argv[1:]]
    return [*_LAUNCHERS[named[found]], *words[found + 1 :]]
