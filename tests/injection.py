"""Runs of ``align.train`` in which a fault is injected where the run touches the disk or meets the other processes.

As a program it is a server: it imports once what a run needs, and each job on its standard input is a line of JSON that
is done in a fork of it, so that a run costs a second or two. A job is ``{"argv": [...], "place": folder, "log": file}``
and may hold ``"fault": [number, how]``, or ``"seconds"`` after which the run is killed; the answer is the exit code,
negative for a signal.

The events of a run are counted from 0: opening a file in ``place`` to write, each write to it, ``os.replace``,
``os.rename``, ``os.fsync``, ``os.unlink``, ``os.mkdir``, ``os.rmdir``, what ``safetensors`` and ``torch`` write on
their own, and every barrier. Each leaves a line in ``log`` once it is done. ``how`` is one of

    raise   an exception in place of the event
    full    a disk that is full: ENOSPC in place of the event; a write has left half of what it was given
    kill    SIGKILL in place of the event
    half    SIGKILL in the middle of a write, half of which has reached the file; else as ``kill``
"""

from __future__ import annotations

import builtins
import errno
import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OS = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir")


class Events:
    """Counts the events in a folder, and lets one of them fail."""

    def __init__(self, place: str, log: str, fault: list | None) -> None:
        self.place, self.fault, self.count = os.path.realpath(place), fault, 0
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def inside(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.path.realpath(path).startswith(self.place)

    def happen(self, name: str, path: Any, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """One event: ``act`` is what it does, ``half`` does a part of it."""
        number, self.count = self.count, self.count + 1
        if self.fault is not None and self.fault[0] == number:
            self._fail(self.fault[1], half)
        result = act()
        shown = os.path.relpath(os.path.realpath(path), self.place) if path is not None else ""
        os.write(self.log, f"{number}\t{name}\t{shown}\n".encode())
        return result

    def _fail(self, how: str, half: Callable[[], Any] | None) -> None:
        if half is not None and how in ("half", "full"):
            half()
        if how in ("kill", "half"):
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.place)
        raise RuntimeError("an injected fault")


class File:
    """An open file whose writes are events."""

    def __init__(self, file: Any, path: Any, events: Events) -> None:
        self._file, self._path, self._events = file, path, events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        return self._events.happen("write", self._path, lambda: self._file.write(data), half)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


def watch(events: Events) -> None:
    """Let everything that a run does to the disk pass through ``events``."""
    plain_open = builtins.open

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set("wax+").isdisjoint(mode) or not events.inside(file):
            return plain_open(file, mode, *args, **kwargs)
        return events.happen("open", file, lambda: File(plain_open(file, mode, *args, **kwargs), file, events))

    builtins.open = io.open = opened  # type: ignore[assignment]
    for name in _OS:
        _pass(events, os, name)
    _pass(events, os, "fsync", always=True)
    import accelerate
    import safetensors.torch
    import torch

    _pass(events, safetensors.torch, "save_file", path=1)
    for module in [m for n, m in sys.modules.items() if n.startswith(("transformers", "peft", "safetensors"))]:
        for own in ("save_file", "safe_save_file"):
            if getattr(module, own, None) is safetensors.torch.save_file.__wrapped__:  # type: ignore[attr-defined]
                setattr(module, own, safetensors.torch.save_file)
    _pass(events, torch, "save", path=1)
    _pass(events, accelerate.Accelerator, "wait_for_everyone", always=True)
    _pass(events, torch.distributed, "barrier", always=True)


def _pass(events: Events, owner: Any, name: str, *, path: int = 0, always: bool = False) -> None:
    plain = getattr(owner, name)

    def passed(*args: Any, **kwargs: Any) -> Any:
        about = args[path] if len(args) > path and not always else None
        if not always and not (events.inside(about) or kwargs.get("dir_fd") is not None):
            return plain(*args, **kwargs)
        return events.happen(name, about if events.inside(about) else None, lambda: plain(*args, **kwargs))

    passed.__wrapped__ = plain  # type: ignore[attr-defined]
    setattr(owner, name, passed)


def _child(job: dict[str, Any]) -> None:
    """Do a job and leave the process."""
    out = os.open(f"{job['log']}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["train.py", *job["argv"]]
    from align.train import main

    if job.get("seconds") is not None:
        killed = threading.Timer(job["seconds"], os.kill, (os.getpid(), signal.SIGKILL))
        killed.daemon = True
        killed.start()
    watch(Events(job["place"], job["log"], job.get("fault")))
    code = 1
    try:
        code = main(job["argv"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    with open(f"{job['log']}.modules", "w") as file:
        file.write("\n".join(sys.modules))
    sys.stdout.flush()
    os._exit(code)


def serve() -> None:
    """Answer jobs until standard input ends; what the first of them had to import is imported here after it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print at their import is no answer
    importlib.import_module("align.training.run")
    warm = False
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            _child(job)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        modules = Path(f"{job['log']}.modules")
        if not warm and modules.exists():
            for name in modules.read_text().split("\n"):
                try:
                    importlib.import_module(name)
                except Exception:
                    continue
            gc.collect()
            gc.freeze()  # a job does not look through, and so copy, what was there before it
            warm = True
        answers.write(f"{code}\n")
        answers.flush()


class Server:
    """Does jobs, one after the other."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        env = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "PYTHONWARNINGS": "ignore"}
        env |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, str(here / "injection.py")], env=env, stdin=pipe, stdout=pipe, text=True
        )

    def run(
        self,
        *argv: str,
        place: Path,
        log: Path,
        fault: tuple[int, str] | None = None,
        seconds: float | None = None,
    ) -> tuple[int, str]:
        """Exit code and output of one run; ``log`` is appended to."""
        job = {"argv": argv, "place": str(place), "log": str(log), "fault": fault, "seconds": seconds}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, Path(f"{log}.out").read_text(errors="replace")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


if __name__ == "__main__":
    serve()
