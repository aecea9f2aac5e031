"""Work on all cores: pieces that do not depend on each other, computed in processes and handed back in order."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores in a period, or "max"
_WORTH = 8  # pieces that a process is started for
_PIPE_BYTES = 1 << 20  # what a worker may be ahead of its reader; a pipe holds 64 KiB otherwise


def cores(*, shared: bool = False) -> int:
    """How many cores this process may use: its affinity and its container's quota, at least one.

    ``shared``: of these, the share of one of a launcher's processes on this machine, which all work at the same time.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = _QUOTA.read_text().split()
        usable = min(usable, max(1, int(quota) // int(period)))
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if shared else usable


def in_order(work: Callable[[int], bytes], pieces: int, processes: int) -> Iterator[bytes]:
    """``work(0)``, ``work(1)``, ... up to ``pieces``, computed by so many processes and given back in this order.

    Processes are forked, so that ``work`` may be any function: what it needs is there already. It must leave
    accelerators and process groups alone. Pieces of a process that dies, or that ``work`` fails for, are computed here,
    where an error shows as it is. Systems other than Linux cannot fork safely: there all pieces are computed here.
    """
    processes = min(processes, pieces // _WORTH)
    if processes < 2 or sys.platform != "linux":
        yield from map(work, range(pieces))
        return
    workers: list[tuple[Any, Connection | None]] = [_started(work, k, pieces, processes) for k in range(processes)]
    try:
        for piece in range(pieces):
            process, answers = workers[piece % processes]
            if answers is not None:
                try:
                    found = answers.recv_bytes()
                except (EOFError, OSError):
                    answers.close()
                    workers[piece % processes] = (process, None)
                else:
                    yield found
                    continue
            yield work(piece)
    finally:
        for process, answers in workers:
            process.terminate()
            if answers is not None:
                answers.close()
            process.join()


def apart(work: Callable[[], Any]) -> bool:
    """Do ``work`` in a forked process, whose memory is given back at its end; whether it came to its end.

    Where it did not, or cannot be forked, nothing is said: do it here, where an error shows as it is.
    """
    if sys.platform != "linux":
        return False
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(work,))
    _start(process)
    try:
        process.join()
    finally:
        process.terminate()
        process.join()
    return process.exitcode == 0


def _started(work: Callable[[int], bytes], first: int, pieces: int, step: int) -> tuple[Any, Connection]:
    """A process that computes every ``step``-th piece, and where its answers come in."""
    context = multiprocessing.get_context("fork")
    answers, out = context.Pipe(duplex=False)
    with contextlib.suppress(OSError):
        fcntl.fcntl(out.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    process = context.Process(target=_compute, args=(work, range(first, pieces, step), answers, out), daemon=True)
    _start(process)
    out.close()
    return process, answers


def _start(process: Any) -> None:
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads: those of torch and of the tokenizers, which no worker goes into
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()


def _compute(work: Callable[[int], bytes], pieces: range, answers: Connection, out: Connection) -> None:
    """What a worker does. It ends without a word: its pieces are then computed where errors are seen."""
    answers.close()  # so that writing fails once the reader is gone

    def send() -> None:
        for piece in pieces:
            out.send_bytes(work(piece))

    _alone(send)


def _alone(work: Callable[[], Any]) -> None:
    """Work in a forked process, up to its end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the run's own handlers would save it
        signal.signal(number, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a worker; its threads did not survive the fork
    gc.freeze()  # memory that the parent made stays shared
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)
