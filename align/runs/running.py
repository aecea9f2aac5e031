"""One run at a time in a directory: a lock that its main process holds while it lives, and that any death frees."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from align.errors import UserError

RUNNING = ".running"

_held: set[IO[str]] = set()


def _let_go() -> None:
    """A child that was forked, such as a data loader's worker, must not keep the lock of a run that died."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class Running:
    """Holds the lock of a run directory until ``release``.

    Args:
        path: the run directory, which is there.
        say: takes a sentence where the file system has no locks.

    Attributes:
        holder: who holds it, the content of the file.

    Raises:
        UserError: where another process holds it, with who, since when, and what to do.
    """

    def __init__(self, path: Path, say: Callable[[str], Any]) -> None:
        self._path = path / RUNNING
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        self.holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now})
        self._file = self._locked(say)
        self._file.truncate(0)
        self._file.write(self.holder)
        self._file.flush()
        _held.add(self._file)

    def _locked(self, say: Callable[[str], Any]) -> IO[str]:
        """The open file, locked. A holder that ends removes it: whoever has locked a removed one tries again."""
        import fcntl

        while True:
            try:
                file = open(self._path, "a+")  # noqa: SIM115 - it stays open while the run lives
            except OSError as error:
                raise UserError(f"{self._path}, the lock of the run, cannot be opened ({error.strerror}).") from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read()
                file.close()
                raise UserError(_in_use(self._path.parent, holder)) from None
            except OSError as error:
                say(
                    f"warning: the file system of {self._path.parent} has no locks ({error.strerror}), so a second run "
                    "in this directory would not be noticed: start one at a time."
                )
                return file
            if os.path.exists(self._path) and os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                return file
            file.close()

    def release(self) -> None:
        """Let the next run in."""
        self._path.unlink(missing_ok=True)
        _held.discard(self._file)
        self._file.close()


def _in_use(path: Path, holder: str) -> str:
    try:
        by = json.loads(holder)
        who = f"process {by['pid']} on {by['host']}, since {by['since']} UTC"
    except (ValueError, TypeError, KeyError):  # it has only just begun
        who = "another process"
    return (
        f"{path} is in use by {who}. One run at a time can write there: wait until that one has ended, end it "
        "(the directory is free at once), or start another run under another name= or output=."
    )
