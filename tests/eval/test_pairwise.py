"""Pairwise comparison in both orders, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.eval.pairwise import PairwiseResult, compare, figures, outcome
from align.judges.judge import CompareJudge, ScoreJudge
from align.stats import wilson


class Table(CompareJudge):
    """P(the first shown is better) by both texts; what is not in the table is not judged."""

    name = "table"

    def __init__(self, table: dict[tuple[str, str], float]) -> None:
        super().__init__()
        self.table, self.asked = table, list[tuple[str, str]]()

    def prefer_first(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[float]:
        pairs = list(zip(shown, other, strict=True))
        self.asked += pairs
        return [self.table.get(pair, math.nan) for pair in pairs]


class Length(ScoreJudge):
    name = "length"

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in responses]


# both orders name a; both name b; each names what is shown first; even in one; equal texts; one order not judged
A = ["a1", "a2", "a3", "a4", "same", "a6"]
B = ["b1", "b2", "b3", "b4", "same", "b6"]
TABLE = {
    ("a1", "b1"): 0.9, ("b1", "a1"): 0.3,
    ("a2", "b2"): 0.2, ("b2", "a2"): 0.7,
    ("a3", "b3"): 0.8, ("b3", "a3"): 0.6,
    ("a4", "b4"): 0.5, ("b4", "a4"): 0.1,
    ("a6", "b6"): 0.9,
}  # fmt: skip


def test_an_answer_wins_where_both_orders_say_so() -> None:
    judge = Table(TABLE)
    verdicts = compare(judge, ["p"] * 6, A, B)
    assert verdicts[0] == pytest.approx((0.9, 0.7), abs=1e-12)
    assert verdicts[4] == (0.5, 0.5)
    assert ("same", "same") not in judge.asked
    assert verdicts[5] == (0.9, None)
    assert [outcome(verdict) for verdict in verdicts] == [1.0, 0.0, 0.5, 0.5, 0.5, None]
    result = figures(("A", "B"), judge, verdicts, A, B)
    assert (result.wins, result.losses, result.ties) == (1, 1, 3)
    assert result.win_rate == wilson(2.5, 5)
    assert result.preference.value == pytest.approx((0.8 + 0.25 + 0.6 + 0.7 + 0.5) / 5, abs=1e-12)
    # shown first minus even: of 0.9 and 0.3, 0.2 and 0.7, 0.8 and 0.6, 0.5 and 0.1
    assert result.bias is not None
    assert result.bias.value == pytest.approx((0.1 - 0.05 + 0.2 - 0.2) / 4, abs=1e-12)
    assert result.agreement == wilson(2, 4)  # the fourth is even in one order
    assert result.notes == ("1 prompt without a verdict that could be read: in no figure",)
    assert result.verdict == "too few to say: 5 prompts judged, and 30 are the least"


def test_a_preference_of_three_prompts_has_ends_that_a_probability_can_have() -> None:
    found = figures(("A", "B"), Table(TABLE), [(0.0, 0.0), (1.0, 1.0), (0.0, 0.0)], A[:3], B[:3]).preference
    assert found.value == pytest.approx(1 / 3, abs=1e-12)
    assert found.low == 0.0 < found.high <= 1.0  # the bootstrap's own lower end is -0.56


def test_the_other_way_round_everything_is_mirrored() -> None:
    there, back = (
        figures(("A", "B"), judge := Table(TABLE), compare(judge, ["p"] * 6, a, b), a, b) for a, b in ((A, B), (B, A))
    )
    assert (there.wins, there.losses, there.ties) == (back.losses, back.wins, back.ties)
    assert there.win_rate.value == pytest.approx(1 - back.win_rate.value, abs=1e-12)
    assert there.preference.value == pytest.approx(1 - back.preference.value, abs=1e-12)
    assert there.bias is not None
    assert back.bias is not None
    assert there.bias.value == pytest.approx(back.bias.value, abs=1e-12)
    assert there.agreement == back.agreement


def result_of(wins: int, losses: int, longest: float) -> PairwiseResult:
    a, b = ["x"] * (wins + losses), ["y"] * (wins + losses)
    verdicts = [(0.9, 0.9)] * wins + [(0.1, 0.1)] * losses
    found = figures(("runs/a", "runs/b"), Table({}), verdicts, a, b)
    return PairwiseResult(**{**vars(found), "longest": longest})


@pytest.mark.parametrize(
    ("wins", "losses", "longest", "verdict"),
    [
        (20, 20, 0.5, "not shown: the interval of the win rate holds 0.5"),
        (35, 5, 0.5, "runs/a is preferred to runs/b"),
        (5, 35, 0.5, "runs/b is preferred to runs/a"),
        # length alone would do as well, on either side
        (35, 5, 0.8, "runs/a is preferred to runs/b; null models: the win rate 0.875 [0.739, 0.945] is not above that "
         "of longest (0.800)."),
        (5, 35, 0.2, "runs/b is preferred to runs/a; null models: the win rate 0.875 [0.739, 0.945] is not above that "
         "of longest (0.800)."),
        (5, 35, 0.9, "runs/b is preferred to runs/a; null models: the win rate 0.875 [0.739, 0.945] is not above that "
         "of shortest (0.900)."),
    ],
)  # fmt: skip
def test_the_verdict(wins: int, losses: int, longest: float, verdict: str) -> None:
    assert result_of(wins, losses, longest).verdict == verdict


def test_a_judge_that_scores_has_no_orders() -> None:
    a, b = ["aaa", "a", "aa"], ["b", "bb", "bb"]
    verdicts = compare(Length(), ["p"] * 3, a, b)
    assert verdicts == [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5)]
    result = figures(("A", "B"), Length(), verdicts, a, b, limit=3)
    assert (result.bias, result.agreement) == (None, None)
    assert result.longest == result.win_rate.value == 0.5
    assert result.characters == (2.0, pytest.approx(5 / 3, abs=1e-12))
    assert result.lines()[0] == "limited to 3 rows: no result"


def test_nothing_that_was_judged_is_no_tie() -> None:
    verdicts = compare(Table({}), ["p"], ["a"], ["b"])
    with pytest.raises(UserError, match="None of 1 pair was judged: table named no winner anywhere"):
        figures(("A", "B"), Table({}), verdicts, ["a"], ["b"])


def test_a_judge_that_was_made_for_turns_reads_turns() -> None:
    class Turns(Table):
        class tokenizer:
            chat_template = "some"

        def prefer_first(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[float]:
            assert list(prompts) == [[{"role": "user", "content": "p"}], [{"role": "user", "content": "q"}]] * 2
            return torch.full((4,), 0.5).tolist()

    given: list[Prompt] = ["p", [{"role": "user", "content": "q"}]]
    assert compare(Turns({}), given, ["a", "c"], ["b", "d"]) == [(0.5, 0.5)] * 2
