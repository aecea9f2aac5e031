"""The mathematics of stability on four pairs, by hand."""

from __future__ import annotations

import math

import pytest

from align.probes.stability import Change, Scores, accuracy, compare, length_of
from align.stats import Interval, wilson

# margins 2, -1, 0 and 3
BEFORE = Scores([2.0, 0.0, 1.0, 3.0], [0.0, 1.0, 1.0, 0.0])


def test_four_pairs_by_hand() -> None:
    # margins 1, 1, 5 and -1: the first keeps its order, the second and the fourth lose it, the third had none
    found = compare(BEFORE, Scores([1.0, 1.0, 5.0, 0.0], [0.0, 0.0, 0.0, 1.0]))
    assert found.kept == wilson(1, 3)
    assert found.ties == 1
    assert (found.before, found.after) == (wilson(2.5, 4), wilson(3, 4))
    # all scores 2 0 1 3 0 1 1 0: mean 1, mean square 2, standard deviation 1; the margin changes by -1, 2, 5, -4
    assert found.shift.value == pytest.approx(0.5)
    assert found.shift.low < 0 < found.shift.high
    assert compare(BEFORE, BEFORE, spread=4.0).shift == Interval(0, 0, 0, 4)
    assert compare(BEFORE, Scores([6.0, 4.0, 5.0, 7.0], BEFORE.rejected), spread=4.0).shift.value == 1.0


def test_ties_before_and_after_are_counted_apart() -> None:
    found = compare(BEFORE, Scores([0.0] * 4, [0.0] * 4))
    assert (found.kept, found.ties, found.after.value) == (None, 4, 0.5)
    assert (found.word("both"), found.passes("both")) == ("all tied", False)


def test_scores_that_never_differ_are_divided_by_one() -> None:
    same = Scores([3.0, 3.0], [3.0, 3.0])
    assert compare(same, Scores([4.0, 5.0], [3.0, 3.0])).shift.value == 1.5


def test_affine_scores_change_nothing() -> None:
    after = Scores([1.0, 1.0, 5.0, 0.0], [0.0, 0.0, 0.0, 1.0])

    def scaled(scores: Scores) -> Scores:
        return Scores([7 * x - 3 for x in scores.chosen], [7 * x - 3 for x in scores.rejected])

    assert compare(scaled(BEFORE), scaled(after)).shift.value == pytest.approx(compare(BEFORE, after).shift.value)
    assert compare(scaled(BEFORE), scaled(after)).kept == compare(BEFORE, after).kept


@pytest.mark.parametrize(
    ("kept", "n", "word"),
    [
        (95, 100, "stable"),
        (94, 100, "unclear"),
        (80, 100, "unstable"),
        (900, 1000, "unstable"),
        (9, 10, "unclear"),
        (29, 29, "unclear"),
        (30, 30, "stable"),
    ],
)
def test_words_of_a_share(kept: int, n: int, word: str) -> None:
    change = Change(wilson(kept, n), 0, wilson(1, 2), wilson(1, 2), Interval(0, 0, 0, n))
    assert (change.word("both"), change.word("prompt")) == (word, word)


@pytest.mark.parametrize(
    ("shift", "word"),
    [
        (Interval(-0.25, -0.3, -0.2, 9), "raised"),
        (Interval(-0.24, -0.3, -0.2, 9), "no pull"),
        (Interval(0.3, 0.2, 0.4, 9), "lowered"),
        (Interval(-0.5, -1.1, 0.1, 9), "no pull"),
    ],
)
def test_words_of_a_change_on_one_side(shift: Interval, word: str) -> None:
    change = Change(wilson(1, 2), 0, wilson(1, 2), wilson(1, 2), shift)
    assert change.word("rejected") == word
    assert change.passes("rejected") == (word == "no pull")


def test_length_by_hand() -> None:
    # the chosen answer is longer in the first two (one right), shorter in the third (a tie), as long in the fourth
    lengths = Scores([5.0, 4.0, 1.0, 2.0], [3.0, 2.0, 3.0, 2.0])
    found = length_of(BEFORE, lengths)
    assert (found.longer, found.shorter) == (wilson(1, 2), wilson(0.5, 1))
    assert found.gap is not None
    assert found.gap.value == 0.0
    # chosen: scores .5 -1.5 -.5 1.5, lengths 2 1 -2 -1; rejected: scores -.5 .5 .5 -.5, lengths .5 -.5 .5 -.5
    assert found.partial == pytest.approx(-1.0 / math.sqrt(6 * 11))


def test_the_gap_has_newcombes_interval() -> None:
    # Newcombe (1998), table II, case (a), method 10: 56/70 against 48/80 gives 0.0524 to 0.3339
    lengths = Scores([2.0] * 70 + [1.0] * 80, [1.0] * 70 + [2.0] * 80)
    chosen = [1.0] * 56 + [-1.0] * 14 + [1.0] * 48 + [-1.0] * 32
    found = length_of(Scores(chosen, [0.0] * 150), lengths)
    assert found.gap is not None
    assert (found.gap.value, found.gap.low, found.gap.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert found.sentence() == (
        "length: accuracy 0.800 where the chosen answer is the longer one (n 70), 0.600 where it is the shorter one "
        "(n 80): LENGTH-BIASED (gap +0.200, threshold 0.2)."
    )


def test_no_length_to_compare() -> None:
    found = length_of(BEFORE, Scores([2.0] * 4, [1.0] * 4))
    assert (found.shorter, found.gap, found.partial) == (None, None, None)
    assert found.sentence() == ("length: chosen answers are all longer, or all shorter, so that nothing can be said.")


def test_accuracy_counts_ties_as_half() -> None:
    assert accuracy(BEFORE.margin) == wilson(2.5, 4)
