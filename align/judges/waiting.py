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

FIRST_AFTER, LONGEST = 10.0, 120.0  # seconds without an answer until something is said; doubled each time, at most


@dataclass
class Call:
    """What is asked for one answer: since when, the try that is under way, and what the last failed one met."""

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
        """One answer is asked for within, in as many calls as it takes."""
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
        left, patience = set(futures), FIRST_AFTER
        while left:
            ended, left = wait(left, timeout=patience, return_when=FIRST_COMPLETED)
            if not ended and (sentence := self.sentence(self.total - len(left))):
                self.say(sentence)
                patience = min(2 * patience, LONGEST)
            yield from ended

    def sentence(self, answered: int) -> str:
        """How things stand by the call that has been under way longest; nothing where none is."""
        with self._lock:
            if not self._calls:
                return ""
            count, oldest = len(self._calls), min(self._calls, key=lambda call: call.began)
            since, tries, last = time.monotonic() - oldest.began, oldest.tries, oldest.last
        many = f"{count} are" if count > 1 else "1 is"
        why = f"; the last one failed: {last}" if last else ""
        return (
            f"waiting for {self.host}: {answered:,} of {self.total:,} answered, {many} asked for, the longest for "
            f"{duration(since)}, try {tries} of {self.most}{why}"
        )
