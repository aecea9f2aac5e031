"""Selection: pairs and best samples by score, the length penalty, and tournaments with their count of comparisons."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.errors import UserError
from align.sampling.select import (
    Outcome,
    Pair,
    Tournament,
    best_worst,
    penalised,
    top,
    tournament,
    tournaments,
)

SCORES = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 3.0, 1e9]), min_size=1, max_size=9)


# ---- by score


def test_best_and_worst() -> None:
    assert best_worst([0.5, -1.0, 2.0, 2.0, -1.0]) == Pair(2, 1)  # the first of equals on both sides
    assert best_worst([1.0, 2.0]) == Pair(1, 0)
    assert best_worst([float("-inf"), 0.0]) == Pair(1, 0)
    assert best_worst([0.3, 0.3, 0.3]) is None
    assert best_worst([0.3]) is None
    assert best_worst([]) is None


def test_the_best_in_order() -> None:
    assert top([1.0, 3.0, 2.0, 3.0], 3) == [1, 3, 2]
    assert top([1.0, 1.0, 1.0], 2) == [0, 1]
    assert top([1.0, 2.0], 5) == [1, 0]


@given(SCORES)
def test_the_best_are_a_stable_order_of_which_fewer_are_the_beginning(scores: list[float]) -> None:
    order = top(scores, len(scores))
    assert sorted(order) == list(range(len(scores)))
    for i, j in itertools.pairwise(order):
        assert scores[i] > scores[j] or (scores[i] == scores[j] and i < j)
    assert all(top(scores, keep) == order[:keep] for keep in range(len(scores) + 1))
    pair = best_worst(scores)
    assert (pair is None) == (len(set(scores)) == 1)
    if pair:
        assert pair.chosen == order[0]
        assert scores[pair.rejected] == min(scores)


def test_a_score_that_is_no_number_is_refused() -> None:
    for select in (best_worst, lambda s: top(s, 1)):
        with pytest.raises(UserError, match=r"score of sample 1 is not a number"):
            select([1.0, math.nan, 2.0])


def test_the_length_penalty_takes_the_log_of_the_characters() -> None:
    found = penalised([1.0, 1.0, 1.0], ["", "x" * 10, "\N{SNOWMAN}" * 100], 0.5)
    assert found == pytest.approx([1.0, 1.0 - 0.5 * math.log(10), 1.0 - 0.5 * math.log(100)])
    assert penalised([1.5, -1.0], ["a", "bcd"], 0.0) == [1.5, -1.0]


def test_a_pair_keeps_the_order_of_the_penalised_scores() -> None:
    # the long text has the higher raw score, and stays the rejected one
    raw, texts = [2.0, 1.0, 1.9], ["x" * 1000, "x" * 10, "x" * 500]
    pair = best_worst(penalised(raw, texts, 0.5))
    assert pair == Pair(1, 0)
    assert raw[pair.chosen] < raw[pair.rejected]


# ---- tournaments


class Referee:
    """Says who wins by fixed strengths, and keeps what it was asked, stage by stage."""

    def __init__(self, strengths: list[float]) -> None:
        self.strengths, self.stages = strengths, []

    def __call__(self, asked: list[tuple[int, int]]) -> list[float]:
        self.stages.append(asked)
        return [1 / (1 + math.exp(self.strengths[b] - self.strengths[a])) for a, b in asked]


def test_eight_samples_take_eleven_comparisons_in_four_stages() -> None:
    referee = Referee([3.0, 1.0, 4.0, -1.0, 5.0, 9.0, 2.0, 6.0])
    outcome = tournament(referee, 8)
    assert outcome == Outcome(Pair(5, 3), "", ties=0, comparisons=11)
    assert referee.stages == [
        [(0, 1), (2, 3), (4, 5), (6, 7)],
        [(0, 2), (5, 7), (1, 3), (4, 6)],  # winners with winners, losers with losers
        [(2, 5), (3, 6)],
        [(5, 3)],
    ]


@pytest.mark.parametrize("count", [2, 4, 8, 16, 32])
def test_comparisons_and_stages_by_number_of_samples(count: int) -> None:
    referee = Referee([float(i * 7 % count) for i in range(count)])
    outcome = tournament(referee, count)
    assert outcome.comparisons == sum(map(len, referee.stages)) == 3 * count // 2 - 1
    assert len(referee.stages) == math.log2(count) + 1


@settings(deadline=None)
@given(st.permutations(range(8)))
def test_a_judge_with_an_order_finds_the_best_and_the_worst(order: list[int]) -> None:
    outcome = tournament(Referee([float(x) for x in order]), 8)
    assert outcome.pair == Pair(order.index(7), order.index(0))
    assert (outcome.dropped, outcome.ties) == ("", 0)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8, 16]))
def test_whatever_the_judge_says_the_pair_won_its_final_check(seed: int, count: int) -> None:
    draw = random.Random(seed)
    table = {
        pair: draw.choice([0.0, 0.2, 0.5, 0.5, 0.9, 1.0]) for pair in itertools.permutations(range(count), 2)
    }  # no order at all, nor the same answer when turned round
    asked: list[tuple[int, int]] = []

    def wins(comparisons: list[tuple[int, int]]) -> list[float]:
        asked.extend(comparisons)
        return [table[c] for c in comparisons]

    outcome = tournament(wins, count)
    best, worst = asked[-1]
    assert best != worst
    final = table[best, worst]
    assert outcome.pair == (Pair(best, worst) if final > 0.5 else None)
    assert outcome.dropped == ("" if final > 0.5 else "tie" if final == 0.5 else "lost")
    assert outcome.ties == sum(table[c] == 0.5 for c in asked[:-1])
    assert len(asked) == 3 * count // 2 - 1
    won = [(a, b) if table[a, b] >= 0.5 else (b, a) for a, b in asked[:-1]]
    assert best not in {loser for _, loser in won}
    assert worst not in {winner for winner, _ in won}


def test_ties_go_to_the_first_and_a_pair_that_ties_is_dropped() -> None:
    outcome = tournament(lambda asked: [0.5] * len(asked), 8)
    assert outcome == Outcome(None, "tie", ties=10, comparisons=11)
    seen: list[list[tuple[int, int]]] = []

    def all_equal_but_last(asked: list[tuple[int, int]]) -> list[float]:
        seen.append(asked)
        return [0.5 if len(seen) < 4 else 0.9] * len(asked)

    # first of all wins throughout; among the losers 1, 3, 5, 7 the second of each two goes on
    assert tournament(all_equal_but_last, 8) == Outcome(Pair(0, 7), "", ties=10, comparisons=11)


def test_a_pair_whose_winner_loses_the_final_check_is_dropped() -> None:
    # 0 beats 2, 3 loses to 1, and yet 3 beats 0
    cycle = {(0, 1): 0.9, (2, 3): 0.9, (0, 2): 0.8, (1, 3): 0.7, (0, 3): 0.1}
    assert tournament(lambda asked: [cycle[c] for c in asked], 4) == Outcome(None, "lost", ties=0, comparisons=5)


def test_prompts_go_through_their_stages_together() -> None:
    strengths = [[float((7 * i + 3 * prompt) % 8) for i in range(8)] for prompt in range(5)]
    strengths[3] = [2.0, 1.0, 3.0, 0.0]
    calls: list[list[tuple[int, int, int]]] = []

    def wins(asked: list[tuple[int, int, int]]) -> list[float]:
        calls.append(asked)
        return [1 / (1 + math.exp(strengths[i][b] - strengths[i][a])) for i, a, b in asked]

    found = tournaments(wins, [len(s) for s in strengths])
    assert [len(call) for call in calls] == [4 * 4 + 2, 4 * 4 + 2, 4 * 2 + 1, 4]
    assert found == [tournament(Referee(s), len(s)) for s in strengths]
    assert found[3].pair == Pair(2, 3)
    assert tournaments(wins, []) == []


@pytest.mark.parametrize("count", [0, 1, 3, 6, 12])
def test_other_numbers_of_samples_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=rf"needs 2, 4, 8, 16 \.\.\. samples of each prompt, not {count}\."):
        Tournament(count)


def test_answers_that_are_no_probabilities_are_refused() -> None:
    for wrong in (math.nan, -0.1, 1.5):
        with pytest.raises(UserError, match="a probability from 0 to 1 is needed"):
            tournament(lambda asked, p=wrong: [p] * len(asked), 4)
    with pytest.raises(UserError, match="gave 1 answers to 2 comparisons"):
        tournament(lambda asked: [0.5], 4)
