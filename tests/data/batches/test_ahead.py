"""Items that a thread makes ahead: in order, no further than asked, errors in their place."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from align.data.batches.ahead import ahead
from align.errors import UserError


def counted(made: list[int], upto: int = 10**9, wrong: int = -1) -> Iterator[int]:
    for number in range(upto):
        if number == wrong:
            raise UserError(f"row {number} is wrong")
        made.append(number)
        yield number


def settled(made: list[int]) -> int:
    """How many were made, once no more come."""
    for _ in range(100):
        before = len(made)
        time.sleep(0.05)
        if before and len(made) == before:
            return before
    raise AssertionError("it never waits")


def test_items_come_in_order_and_are_made_before_they_are_asked_for() -> None:
    made: list[int] = []
    items = ahead(counted(made), 3)
    assert next(items) == 0
    assert settled(made) == 5  # one is read, three are ready and one waits to be
    assert [next(items) for _ in range(4)] == [1, 2, 3, 4]
    assert settled(made) == 9
    assert list(ahead(counted([], 7), 2)) == list(range(7))
    assert list(ahead(counted([], 0), 2)) == []


def test_an_error_is_raised_behind_what_came_before_it() -> None:
    items = ahead(counted([], wrong=2), 8)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(UserError, match=r"^row 2 is wrong$"):
        next(items)


def test_the_thread_ends_when_nobody_reads_any_more() -> None:
    before = threading.enumerate()
    items = ahead(counted([]), 1)
    next(items)
    (thread,) = set(threading.enumerate()) - set(before)
    items.close()
    thread.join(timeout=10)
    assert not thread.is_alive()
