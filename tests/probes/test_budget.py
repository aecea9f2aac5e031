"""Probes stay within their share of the training time, on a clock that the test sets."""

from __future__ import annotations

import pytest

from align.probes.budget import Budget


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def read(budget: Budget, clock: Clock, name: str, seconds: float) -> None:
    with budget.timed(name):
        clock.now += seconds


def test_a_reading_comes_once_its_part_of_the_training_time_pays_for_it() -> None:
    clock = Clock()
    budget = Budget(0.05, ["pairs"], clock)
    read(budget, clock, "pairs", 2.0)  # the start, which nobody pays for
    budget.begin()
    found = []
    for _ in range(100):  # a log step takes 10 s
        clock.now += 10.0
        if budget.allows("pairs"):
            found.append(clock.now - 102.0)
            read(budget, clock, "pairs", 2.0)
    # 2 s are 5 % of 40 s, so a reading every 4 log steps; their own time is no training time
    assert found == [40.0 + 42.0 * k for k in range(25)]
    assert budget.training_seconds == pytest.approx(1000.0)
    probes = {"pairs": {"readings": 26, "skipped": 75, "seconds": 52.0}}
    assert budget.summary() == {"limit": 0.05, "share": 0.05, "training_seconds": 1000.0, "probes": probes}


def test_a_cheap_probe_does_not_use_up_what_a_costly_one_needs() -> None:
    clock = Clock()
    budget = Budget(0.1, ["cheap", "costly"], clock)
    read(budget, clock, "cheap", 0.1)
    read(budget, clock, "costly", 5.0)
    budget.begin()
    for _ in range(300):
        clock.now += 1.0
        for name, seconds in (("cheap", 0.1), ("costly", 5.0)):
            if budget.allows(name):
                read(budget, clock, name, seconds)
    probes = budget.summary()["probes"]
    # each has 5 % of 300 s, 15 s: 3 readings of 5 s, and 150 of 0.1 s
    assert probes["costly"]["readings"] == 1 + 3
    assert 1 + 148 <= probes["cheap"]["readings"] <= 1 + 150
    assert budget.summary()["share"] <= 0.1


def test_a_reading_that_became_dearer_waits_for_its_new_price_and_one_that_fails_is_counted() -> None:
    clock = Clock()
    budget = Budget(0.5, ["pairs"], clock)
    budget.begin()
    clock.now += 1.0
    assert budget.allows("pairs")  # nothing is known of its price yet
    with pytest.raises(TypeError):
        read(budget, clock, "pairs", "4")  # type: ignore[arg-type]
    assert budget.summary()["probes"]["pairs"]["readings"] == 1
    read(budget, clock, "pairs", 4.0)
    clock.now += 6.9  # half of 7.9 s does not pay for 4 s that were spent and 4 more
    assert not budget.allows("pairs")
    clock.now += 8.1
    assert budget.allows("pairs")
    assert budget.summary()["probes"]["pairs"] == {"readings": 2, "skipped": 1, "seconds": 4.0}


def test_no_share_means_the_start_and_the_end_alone() -> None:
    clock = Clock()
    budget = Budget(0.0, ["pairs"], clock)
    read(budget, clock, "pairs", 0.5)
    budget.begin()
    clock.now += 1e6
    assert not budget.allows("pairs")


def test_readings_after_the_end_cost_no_share_and_no_training_time() -> None:
    clock = Clock()
    budget = Budget(0.05, ["pairs"], clock)
    budget.begin()
    clock.now += 100.0
    read(budget, clock, "pairs", 2.0)
    budget.end()
    read(budget, clock, "pairs", 30.0)
    budget.end()  # once more, and nothing changes
    probes = {"pairs": {"readings": 2, "skipped": 0, "seconds": 32.0}}
    assert budget.summary() == {"limit": 0.05, "share": 0.02, "training_seconds": 100.0, "probes": probes}
