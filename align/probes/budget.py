"""How much of a run's time its probes may take: they time themselves, and are read less often beyond their share.

``share`` is of the time of training itself, without the probes. Every probe has an equal part of it, so that one that
costs little does not use up what a costly one needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class _Cost:
    """What one probe took: seconds of its last reading, of all readings, and of those that the budget pays for."""

    last: float = 0.0
    seconds: float = 0.0
    paid: float = 0.0
    readings: int = 0
    skipped: int = 0


class Budget:
    """Times probes and says whether the next reading still fits.

    Readings before ``begin`` (the start) and after ``end`` are not paid for by the share, since a verdict needs both;
    ``summary`` counts them all the same.

    Args:
        share: of the training time, 0.05 for 5 %.
        names: of the probes.
        clock: seconds.
    """

    def __init__(self, share: float, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.share, self._clock = share, clock
        self._costs = {name: _Cost() for name in names}
        self._began: float | None = None
        self._ended: float | None = None

    def add(self, name: str) -> None:
        """One more probe, which has an equal part from now on."""
        self._costs[name] = _Cost()

    def begin(self) -> None:
        """Training starts now."""
        self._began = self._clock()

    def end(self) -> None:
        """The last step is done; a second call changes nothing."""
        self._ended = self._clock() if self._ended is None else self._ended

    @property
    def training_seconds(self) -> float:
        """From ``begin`` to ``end``, or to now, without the probes."""
        if self._began is None:
            return 0.0
        until = self._clock() if self._ended is None else self._ended
        return until - self._began - sum(cost.paid for cost in self._costs.values())

    def allows(self, name: str) -> bool:
        """Whether a reading of the probe that costs what the last one did stays within its part; counts a refusal."""
        cost = self._costs[name]
        if cost.paid + cost.last <= self.share / len(self._costs) * self.training_seconds:
            return True
        cost.skipped += 1
        return False

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times one reading."""
        began, cost = self._clock(), self._costs[name]
        try:
            yield
        finally:
            cost.last = self._clock() - began
            cost.seconds += cost.last
            cost.readings += 1
            if self._began is not None and self._ended is None:
                cost.paid += cost.last

    def summary(self) -> dict[str, Any]:
        """Plain JSON: for each probe its readings, those skipped and its seconds; and the share of training time."""
        probes = {
            name: {"readings": c.readings, "skipped": c.skipped, "seconds": round(c.seconds, 3)}
            for name, c in self._costs.items()
        }
        training, paid = self.training_seconds, sum(c.paid for c in self._costs.values())
        share = round(paid / training, 4) if training > 0 else None
        return {"limit": self.share, "share": share, "training_seconds": round(training, 3), "probes": probes}
