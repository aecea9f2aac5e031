"""Batches of a stream made ahead of the step that reads them, in their order."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

_LOOK_SECONDS = 0.1  # how often a worker that is far enough ahead looks whether anybody still reads
_END = object()


def ahead(items: Iterable[Item], most: int) -> Iterator[Item]:
    """``items`` in order, of which up to ``most`` are made by a thread before they are asked for.

    A thread and no process: tokenizers and torch let others work while they compute, what is counted is counted in this
    process, and an error is raised here as it is, behind the items that came before it. The thread ends once nobody
    reads any more.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=most)
    closed = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=_LOOK_SECONDS)
                return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if closed.is_set():
                    return
        except BaseException as error:
            put(_END, error)
        else:
            put(_END)

    threading.Thread(target=work, name="batches ahead", daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        closed.set()
