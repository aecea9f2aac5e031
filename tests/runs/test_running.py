"""One run at a time in a directory."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.runs.running import RUNNING, Running

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that it has threads, and forks


def silent(line: str) -> None:
    raise AssertionError(line)


def held_by_a_child(path: Path) -> int:
    """A process that holds the directory; its id."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Running(path, silent)
            os.write(into, b"held")
            time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(out, 4) == b"held"
    os.close(out)
    os.close(into)
    return child


def test_a_second_run_is_told_who_holds_the_directory_and_what_to_do(tmp_path: Path) -> None:
    child = held_by_a_child(tmp_path)
    with pytest.raises(UserError) as refused:
        Running(tmp_path, silent)
    since = json.loads((tmp_path / RUNNING).read_text())["since"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", since)
    assert str(refused.value) == (
        f"{tmp_path} is in use by process {child} on {socket.gethostname()}, since {since} UTC. One run at a time can "
        "write there: wait until that one has ended, end it (the directory is free at once), or start another run "
        "under another name= or output=."
    )
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    Running(tmp_path, silent).release()  # a death of any kind frees it


def test_a_run_that_ends_leaves_no_lock_behind(tmp_path: Path) -> None:
    held = Running(tmp_path, silent)
    assert json.loads((tmp_path / RUNNING).read_text()) == json.loads(held.holder)
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_outlives_the_run_does_not_keep_its_lock(tmp_path: Path) -> None:
    """As a data loader's worker does, for some seconds, after its parent was killed."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Running(tmp_path, silent)
            if os.fork():
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(into, str(os.getpid()).encode())
            time.sleep(60)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    worker = int(os.read(out, 20))
    try:
        Running(tmp_path, silent).release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_that_was_removed_under_way_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder ends between the opening of its file by another run and the lock that this one gets on it."""
    first, real = Running(tmp_path, silent), fcntl.flock

    def ends_first(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        first.release()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", ends_first)
    second = Running(tmp_path, silent)
    with pytest.raises(UserError, match="is in use"):
        Running(tmp_path, silent)
    second.release()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lines: list[str] = []
    Running(tmp_path, lines.append).release()
    assert lines == [
        f"warning: the file system of {tmp_path} has no locks (Function not implemented), so a second run in this "
        "directory would not be noticed: start one at a time."
    ]
