"""The mathematics of answer order on four pairs, by hand."""

from __future__ import annotations

import pytest

from align.probes.answer_order import answer_order
from align.probes.stability import Scores
from align.stats import wilson

LENGTHS = Scores([5.0, 4.0, 1.0, 2.0], [3.0, 2.0, 3.0, 1.0])


def test_four_pairs_by_hand() -> None:
    # chosen first and rejected first: right in both; what is shown first in both; wrong in both; a tie in one order
    found = answer_order([0.9, 0.9, 0.2, 0.5], [0.3, 0.7, 0.6, 0.4], LENGTHS)
    assert found.bias.value == pytest.approx((0.1 + 0.3 - 0.1 - 0.05) / 4)
    assert found.flips == wilson(1, 3)
    assert (found.ties, found.pairs) == (1, 4)
    # of both orders together the chosen answer wins in the first, the second and the fourth
    assert found.accuracy == wilson(3, 4)
    assert (found.length.longer, found.length.shorter) == (wilson(3, 3), wilson(0, 1))
    assert found.null_accuracy == {"longest": wilson(3, 4), "shortest": wilson(1, 4)}


def test_a_judge_of_position_alone_is_called_out() -> None:
    found = answer_order([0.9] * 4, [0.9] * 4, LENGTHS)
    assert found.sentences() == [
        "accuracy 0.500 [0.150, 0.850], both orders averaged; longest 0.750, shortest 0.250.",
        "position bias: P(first shown better) is +0.400 [+0.400, +0.400] from one half (threshold 0.2): PREFERS WHAT "
        "IS SHOWN FIRST.",
        "answer order: the verdict of 1.000 [0.510, 1.000] of 4 pairs changes with the order (threshold 0.05): "
        "unstable.",
        "length: accuracy 0.500 where the chosen answer is the longer one (n 3), 0.500 where it is the shorter one "
        "(n 1): not length-biased (gap +0.000, threshold 0.2).",
        "null models: accuracy 0.500 [0.150, 0.850] is not above that of longest (0.750).",
        "Changes of the texts are not tried: they are measured by scores, and this judge compares.",
    ]
    assert "PREFERS WHAT IS SHOWN LAST" in answer_order([0.1] * 4, [0.1] * 4, LENGTHS).sentences()[1]


@pytest.mark.parametrize(("bias", "said"), [(0.19, "no preference for a place"), (0.21, "PREFERS WHAT IS SHOWN FIRST")])
def test_the_threshold_of_the_bias(bias: float, said: str) -> None:
    found = answer_order([0.5 + bias] * 4, [0.5 + bias] * 4, LENGTHS)
    assert found.sentences()[1].endswith(f"{said}.")


def test_a_judge_that_reads_is_stable() -> None:
    found = answer_order([0.8] * 100, [0.2] * 100, Scores([2.0, 1.0] * 50, [1.0, 2.0] * 50))
    assert [text for text in found.sentences() if text.startswith(("position", "answer", "null"))] == [
        "position bias: P(first shown better) is +0.000 [+0.000, +0.000] from one half (threshold 0.2): no preference "
        "for a place.",
        "answer order: the verdict of 0.000 [0.000, 0.037] of 100 pairs changes with the order (threshold 0.05): "
        "stable.",
    ]


def test_ties_alone_have_no_verdict() -> None:
    found = answer_order([0.5] * 2, [0.5] * 2, Scores([2.0, 1.0], [1.0, 2.0]))
    assert (found.flips, found.ties) == (None, 2)
    assert "answer order: no pair has a verdict in both orders." in found.sentences()
