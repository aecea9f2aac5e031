"""Runs work in a forked process that may not hang, grow or write where it should not, and says what became of it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

SECONDS, GROWTH = 20.0, 2 << 30
_POLL, _LOOKS = 0.01, 20  # seconds between looks, and looks until new children are looked for
_PAGE = os.sysconf("SC_PAGE_SIZE")
Entries = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Outcome:
    """What became of work.

    Attributes:
        code: its exit code, negative for a signal, None where it was ended because it was too slow or too large.
        said: all that it printed.
        growth: bytes by which its memory grew, that of the processes that it started among them.
        wrong: the first thing that it did and must not do; empty where there is none.
    """

    code: int | None
    said: str
    seconds: float
    growth: int
    wrong: str


def contained(work: Callable[[], int], place: Path, *, may_write: tuple[str, ...] = ()) -> Outcome:
    """Do ``work`` in a process of its own, with ``place`` as working directory and ``place/home`` as home folder.

    Args:
        work: gives the exit code. A ``UserError`` of it is as if the command line had met it.
        place: a folder; it and its neighbours are compared before and after.
        may_write: what in ``place`` may change, relative to it.
    """
    (place / "home").mkdir(exist_ok=True)
    log = place / "home" / "said"
    before, began = entries(place.parent), time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        pid = os.fork()
    if not pid:
        _child(work, place, log)
    code, growth = _watched(pid, began)
    seconds = time.monotonic() - began
    said = log.read_text(errors="replace")
    free = tuple(f"{place.name}/{name}" for name in ("home", *may_write))
    written = [name for name in changed(before, entries(place.parent)) if not name.startswith(free)]
    return Outcome(code, said, seconds, growth, _wrong(code, said, seconds, growth, written))


def _wrong(code: int | None, said: str, seconds: float, growth: int, written: list[str]) -> str:
    if code is None:
        return f"it was ended after {seconds:.1f} s, {growth >> 20:,} MiB larger"
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    if "Traceback" in said:
        return "it printed a traceback"
    if code > 4:
        return f"it left with {code}"
    if code and not said.strip():
        return f"it left with {code} and said nothing"
    return f"it wrote {written[0]}" if written else ""


def entries(place: Path) -> Entries:
    """Kind, size and time of everything in a folder; of folders their kind alone. Links are not followed."""
    found = {}
    for folder, below, names in os.walk(place):
        for name in (*below, *names):
            about = os.lstat(os.path.join(folder, name))
            size, changed_at = (0, 0) if name in below else (about.st_size, about.st_mtime_ns)
            found[os.path.relpath(os.path.join(folder, name), place)] = (about.st_mode, size, changed_at)
    return found


def changed(before: Entries, after: Entries) -> list[str]:
    """What was added, changed or removed."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _child(work: Callable[[], int], place: Path, log: Path) -> None:
    """Do the work and leave the process."""
    code = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        home = str(place / "home")
        os.environ |= {"HOME": home, "XDG_CACHE_HOME": home, "NO_COLOR": "1"}
        warnings.simplefilter("ignore")
        os.chdir(place)
        code = _answered(work)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _answered(work: Callable[[], int]) -> int:
    from align.errors import UserError

    try:
        return work()
    except UserError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _watched(pid: int, began: float) -> tuple[int | None, int]:
    """The exit code of a process and how much larger it and those that it started became; ended beyond a limit."""
    first: dict[int, int] = {}
    below: list[int] = []
    growth, looks = 0, 0
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _end(pid)  # what it left behind
            return os.waitstatus_to_exitcode(status), growth
        if looks % _LOOKS == 0:
            below = _below(pid)
        looks += 1
        now = {one: held for one in (pid, *below) if (held := _held(one)) is not None}
        first = {**now, **first}  # a fork begins with what its parent has
        growth = max(growth, sum(held - first[one] for one, held in now.items()))
        if time.monotonic() - began > SECONDS or growth > GROWTH:
            _end(pid)
            os.waitpid(pid, 0)
            return None, growth
        time.sleep(_POLL)


def _held(pid: int) -> int | None:
    """Bytes of memory that are no file's; None for a process that is gone."""
    try:
        size, shared = (int(number) for number in Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    except (OSError, ValueError):
        return None
    return (size - shared) * _PAGE


def _below(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
