"""Which process of a run says how the run ended.

A launcher ends all processes as soon as one of them has left with an error. So whoever fails first says its sentence at
once, and the others leave without a word: what they met is a consequence. They agree through a file, since a collective
would wait for those that failed. It lies in the folder that torch's launcher makes for each start on each machine
(TORCHELASTIC_ERROR_FILE, torch.distributed.elastic.multiprocessing.api, names a file of this rank in it).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from align.report.page.untrusted import visible

POLL = 0.05  # seconds


def rank() -> int:
    """This process among those of the run."""
    return int(os.environ.get("RANK", "0"))


def several() -> bool:
    """Whether a launcher started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _place() -> Path | None:
    """The folder of this process, beside those of the others on this machine; None where no launcher made one."""
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(name).parent if name else None


def enter() -> None:
    """Let the other processes see that this one lives."""
    if (place := _place()) is not None:
        (place / "pid").write_text(str(os.getpid()))


def lost_one() -> bool:
    """Whether a process that entered on this machine is gone."""
    place = _place()
    for file in place.parent.glob("*/pid") if place is not None else ():
        try:
            os.kill(int(file.read_text() or os.getpid()), 0)
        except ProcessLookupError:
            return True
    return False


def spoken() -> int | None:
    """The exit code of another process that has spoken on this machine; None where none has."""
    place = _place()
    if place is None:
        return None
    try:
        pid, _, code = (place.parent / "spoken").read_text().partition(" ")
    except FileNotFoundError:
        return None
    return None if pid == str(os.getpid()) else int(code)


def wait_for_another(seconds: float) -> int | None:
    """``spoken``, which may come within so many seconds."""
    until = time.monotonic() + seconds
    while (code := spoken()) is None and time.monotonic() < until:
        time.sleep(POLL)
    return code


def speak(sentence: str, code: int) -> int:
    """Say a sentence on standard error unless another process has said one; the exit code to leave with.

    Nothing may end this process from the moment that the others leave it to speak: see ``signals.Signals.over``.
    """
    place = _place()
    try:
        if place is not None:
            own = place.parent / f"last-{os.getpid()}"
            own.write_text(f"{os.getpid()} {code}")
            os.link(own, place.parent / "spoken")  # whole from the first moment, and only one is first
    except FileExistsError:
        return spoken() or code
    except OSError:
        pass  # a disk is full: twice is better than never
    sys.stderr.write(f"{visible(sentence)}\n")
    sys.stderr.flush()
    return code
