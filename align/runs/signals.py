"""What asks a run to end before its end: SIGTERM, SIGUSR1 (SLURM's --signal), Ctrl-C, and a launcher that is gone.

Until the first step there is nothing to lose, and the work ends where it is: ``Interrupted`` is raised. From then on
the run is asked to end at a step's end, where it saves (``align.trainers.ending``). A second Ctrl-C ends it at once.
Who sends SIGTERM will kill soon (torch's launcher after 30 seconds, SLURM likewise), so a step that has not ended after
``GRACE`` seconds is given up, with a word.

A thread watches beside the main one, which may be waiting in a collective, where Python runs no handler of a signal.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from align.errors import Exit
from align.runs.go_on import go_on
from align.runs.speaker import lost_one, rank, speak, spoken, wait_for_another

GRACE = 20.0  # seconds
_LOOK = 0.5  # seconds between two looks at the launcher and at the other processes
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1", signal.SIGINT: "Ctrl-C"}
STEP, RESULT = "this step has ended and is saved", "its result is written"
LOST = "Another process of this run ended without a word: it was killed, perhaps because memory ran out (see dmesg)."


class Interrupted(KeyboardInterrupt):
    """The work ends where it is. Exit code 130 after Ctrl-C, else that of a run that was stopped."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.exit_code = 130 if name == _NAMES[signal.SIGINT] else int(Exit.GUARD)


class Signals:
    """What this process was asked, and when it obeys. There is one, ``SIGNALS``.

    Attributes:
        asked: the name of what asked the run to end; empty where nothing did.
        run: the directory of the run that this process is at; None before its recipe was read.
        until: what the run waits for before it ends, such as ``STEP``; empty where it ends at once.
        saving: whether that has come, and the checkpoint is being written.
    """

    def __init__(self) -> None:
        self.asked, self.until, self.saving = "", "", False
        self.run: Path | None = None
        self._leaves = False  # nothing is heard after the work, either
        self._over = threading.Event()  # nothing is heard
        self._over.set()
        self._leaving = threading.Lock()  # the main thread or the one that watches: who has it says the last word

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear signals within; what they did before is put back afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets no other thread hear them
            return
        self.asked, self.until, self.saving, self.run, self._leaves = "", "", False, None, False
        self._over, self._leaving = threading.Event(), threading.Lock()
        before = {number: signal.signal(number, self._hear) for number in _NAMES}
        out, into = os.pipe()
        os.set_blocking(into, False)
        woken = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(out,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            self.over()
            self.asked = self.until = ""  # what was asked of this work is not asked of the next one
            with suppress(BlockingIOError):  # full of signals: it is awake
                os.write(into, b"\0")  # wakes the other thread, which would look up in half a second
            watch.join()
            signal.set_wakeup_fd(woken)
            os.close(into)
            os.close(out)
            if not self._leaves:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def over(self, *, leaves: bool = False) -> None:
        """The work has ended: nothing is heard from here on, so that the last sentence is said whole.

        ``leaves``: nor is anything afterwards, so that the process leaves with its own exit code.
        """
        self._leaves = leaves or self._leaves
        if self._over.is_set():
            return
        for number in _NAMES:
            signal.signal(number, signal.SIG_IGN)
        self._leaving.acquire()  # where the other thread has it, it is about to end this process
        self._over.set()

    def obey(self) -> None:
        """End here where the run was asked to end. Raises Interrupted."""
        if self.asked:
            raise Interrupted(self.asked)

    def forget(self) -> None:
        """In a process that was forked from this one, such as one that loads rows: signals do what they always do."""
        if self._over.is_set():
            return
        signal.set_wakeup_fd(-1)
        for number in _NAMES:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._over.set()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        name = _NAMES[signal.Signals(number)]
        before, self.asked = self.asked, name
        again = before == name
        # a second signal must not break in upon the first one's sentence
        if (not self.until and not before) or (again and number == signal.SIGINT):
            raise Interrupted(name)
        if not self.until:
            return
        if rank() == 0 and not again:
            more = " Ctrl-C again ends it at once." if number == signal.SIGINT else ""
            # written past Python's own buffer, in the middle of which this may have come
            os.write(2, f"{name}: the run ends when {self.until}.{more}\n".encode())

    def _watch(self, out: int) -> None:
        """What the other thread does."""
        launched, parent, since = "RANK" in os.environ, os.getppid(), None
        while not self._over.is_set():
            if select.select([out], [], [], _LOOK)[0] and signal.SIGTERM in os.read(out, 64):
                since = since or time.monotonic()
            if launched and os.getppid() != parent:
                parent = os.getppid()
                os.kill(os.getpid(), signal.SIGTERM)
            if spoken() is not None:
                self._over.wait(_LOOK)  # the main thread may be about to leave by itself
                self._leave("", spoken() or 1)
            elif since is not None and lost_one() and wait_for_another(_LOOK) is None:
                self._leave(LOST, 1)
            elif since is not None and time.monotonic() - since > GRACE and not self.saving:
                self._leave(f"SIGTERM: the work at hand did not end within {GRACE:g} seconds and is lost.", Exit.GUARD)

    def _leave(self, word: str, code: int) -> None:
        """End this process with a word unless the main thread is about to."""
        if self._leaving.acquire(blocking=False):
            try:
                code = speak(f"{word} {go_on(self.run)}", code) if word else code
            finally:  # whoever would read the word may be gone, and the main thread waits for this thread's end
                os._exit(code)


SIGNALS = Signals()
os.register_at_fork(after_in_child=SIGNALS.forget)
