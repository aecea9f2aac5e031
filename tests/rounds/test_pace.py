"""A warm-up of rounds is one of all their steps, and accuracy that is rounding is not shown."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from align.rounds.pace import Pace
from align.rounds.report import _accuracy


def test_steps_of_a_round_are_counted_as_training_counts_them() -> None:
    args = SimpleNamespace(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        world_size=4,
        num_train_epochs=2.0,
        max_steps=-1,
        warmup_steps=0.1,
    )
    pace = Pace.of(args)
    assert pace == Pace(24, 2.0, -1, 0.1)
    assert [pace.steps(pairs) for pairs in (1, 24, 25, 100)] == [2, 2, 4, 10]
    assert Pace(24, 2.0, 7, 0.1).steps(100) == 7


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (0.1, [3, 0, 0]),  # a tenth of 30 steps, where each round alone would give one
        (0.5, [10, 5, 0]),  # 15 of 30: all of the first round, half of the second
        (4, [4, 0, 0]),
        (13, [10, 3, 0]),
        (0, [0, 0, 0]),
        (0.01, [1, 0, 0]),
    ],
)
def test_a_warm_up_is_a_share_of_all_rounds_steps(warmup: float, expected: list[int]) -> None:
    pace = Pace(10, 1.0, -1, warmup)
    assert [pace.warmup_steps(100, 10 * round, 2 - round) for round in range(3)] == expected


def test_rounds_of_unequal_length_share_what_is_known_by_then() -> None:
    pace = Pace(10, 1.0, -1, 0.2)
    assert pace.warmup_steps(100, 0, 2) == 6  # of 10 + 10 + 10
    assert pace.warmup_steps(400, 10, 1) == 8  # of 10 + 40 + 40: 18, of which ten steps are gone
    assert pace.warmup_steps(50, 50, 0) == 0


def logged(*margins: float) -> list[dict[str, float]]:
    return [{"rewards/margins": margin, "rewards/accuracies": 0.7} for margin in margins]


def test_an_accuracy_of_margins_that_are_rounding_is_not_shown() -> None:
    assert _accuracy(logged(-3e-4, 0.5), True) == 0.7
    assert _accuracy(logged(-3e-4, -1.3e-3), True) == 0.7  # wrong ones stand out as well
    assert _accuracy(logged(-3e-4, 1.1e-3), True) is None  # less than four times the rounding
    assert _accuracy(logged(0.0, 9e-6), True) is None
    assert _accuracy(logged(0.0, 2e-5), True) == 0.7
    assert _accuracy(logged(0.5), True) is None  # nothing was trained before it was measured
    assert _accuracy(logged(0.4, 0.5), False) == 0.7  # margins over the initial policy
    assert _accuracy([], True) is None
