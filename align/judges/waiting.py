"""What is said while a server is waited for: who it is, how long it has been, and which try it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from align.report.progress import duration

AGAIN_AFTER = 10.0  # seconds without an answer until something is said, and until it is said again


@dataclass
class Call:
    """One call that is under way: when it began, its tries, and what the last failed one met."""

    began: float = field(default_factory=time.monotonic)
    tries: int = 1
    last: str = ""


class Waiting:
    """Watches calls that other threads make, and says how they stand while none of them is done.

    Args:
        host: who is asked.
        retries: times that a failed call is made again.
        total: answers that are waited for.
        say: where sentences go.
    """

    def __init__(self, host: str, retries: int, total: int, say: Callable[[str], Any]) -> None:
        self.host, self.most, self.total, self.say = host, retries + 1, total, say
        self._calls: list[Call] = []
        self._lock = threading.Lock()

    @contextmanager
    def call(self) -> Iterator[Call]:
        """A call that is under way within."""
        call = Call()
        with self._lock:
            self._calls.append(call)
        try:
            yield call
        finally:
            with self._lock:
                self._calls.remove(call)

    def done(self, futures: Iterable[Future[Any]]) -> Iterator[Future[Any]]:
        """The futures in the order in which they end; says how things stand where none does for long."""
        left = set(futures)
        while left:
            ended, left = wait(left, timeout=AGAIN_AFTER, return_when=FIRST_COMPLETED)
            if not ended and (sentence := self.sentence(self.total - len(left))):
                self.say(sentence)
            yield from ended

    def sentence(self, answered: int) -> str:
        """How things stand by the call that has been under way longest; nothing where none is."""
        with self._lock:
            if not self._calls:
                return ""
            count, oldest = len(self._calls), min(self._calls, key=lambda call: call.began)
            since, tries, last = time.monotonic() - oldest.began, oldest.tries, oldest.last
        many = f"{count} calls are" if count > 1 else "1 call is"
        why = f"; the last one failed: {last}" if last else ""
        return (
            f"waiting for {self.host}: {answered:,} of {self.total:,} answered, {many} under way, the longest for "
            f"{duration(since)}, try {tries} of {self.most}{why}"
        )
