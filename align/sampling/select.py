"""Which samples are trained on: pure functions of scores, and tournaments of comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from align.errors import UserError

Comparison = tuple[int, int]  # two samples of one prompt, by number
Dropped = Literal["", "tie", "lost"]


@dataclass(frozen=True)
class Pair:
    """Numbers of the better and of the worse sample."""

    chosen: int
    rejected: int


def best_worst(scores: Sequence[float]) -> Pair | None:
    """The highest and the lowest score, the first of equals; None where all are equal.

    Raises:
        UserError: for a score that is not a number.
    """
    _check_scores(scores)
    if not scores or max(scores) == min(scores):
        return None
    return Pair(scores.index(max(scores)), scores.index(min(scores)))


def top(scores: Sequence[float], keep: int) -> list[int]:
    """Numbers of the ``keep`` highest scores, best first, equals in their order; so it begins as ``top`` of fewer does.

    Raises:
        UserError: for a score that is not a number.
    """
    _check_scores(scores)
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:keep]


def penalised(scores: Sequence[float], texts: Sequence[str], weight: float) -> list[float]:
    """Scores less ``weight`` times the natural log of the text's characters; an empty text counts as one character.

    What is selected by these keeps the order that they give: sorting a pair again by the raw scores would undo the
    penalty.
    """
    return [score - weight * math.log(max(len(text), 1)) for score, text in zip(scores, texts, strict=True)]


def _check_scores(scores: Sequence[float]) -> None:
    for i, score in enumerate(scores):
        if math.isnan(score):
            raise UserError(f"The judge's score of sample {i} is not a number (nan), so it cannot be ranked.")


@dataclass(frozen=True)
class Outcome:
    """What a tournament came to.

    Attributes:
        pair: the winner and the loser, or None where the final check dropped it.
        dropped: why: ``tie`` where both were equal in the final check, ``lost`` where the loser of all was preferred.
        ties: comparisons before that check that were equal, and went to the first of the two.
        comparisons: how many were made.
    """

    pair: Pair | None
    dropped: Dropped
    ties: int
    comparisons: int


class Tournament:
    """INPO's tournament among the samples of one prompt, one stage at a time.

    Neighbours are compared; then winners play winners for the best and losers play losers for the worst, a tie going to
    the first of the two. At last best and worst are compared themselves, and the pair is kept only if the best wins.
    That takes 3 ``count`` / 2 - 1 comparisons in log2(``count``) + 1 stages: 11 in 4 for 8 samples.

    Args:
        count: samples, a power of two.

    Attributes:
        due: comparisons of this stage, as numbers of samples; empty when it is over.
        outcome: what it came to; None before that.

    Raises:
        UserError: for a number of samples that is no power of two.
    """

    def __init__(self, count: int) -> None:
        if count < 2 or count & (count - 1):
            raise UserError(f"A tournament needs 2, 4, 8, 16 ... samples of each prompt, not {count}.")
        self._winners: list[int] = list(range(count))
        self._losers: list[int] = []
        self._ties = self._made = 0
        self.outcome: Outcome | None = None
        self.due = _neighbours(self._winners)

    def answer(self, first_wins: Sequence[float]) -> None:
        """Take the probability that the first of the two is better, for each comparison that is due.

        Raises:
            UserError: for anything but probabilities.
        """
        for p in first_wins:
            if not 0 <= p <= 1:
                raise UserError(f"The judge answered {p} for a comparison; a probability from 0 to 1 is needed.")
        played = list(zip(self.due, first_wins, strict=True))
        self._made += len(played)
        if not self._losers:
            self._ties += _ties(played)
            self._winners, self._losers = _passed(played, best=True), _passed(played, best=False)
        elif len(self._winners) > 1:
            self._ties += _ties(played)
            half = len(self._winners) // 2
            self._winners, self._losers = _passed(played[:half], best=True), _passed(played[half:], best=False)
        else:
            self._finish(*played)
            return
        final = [(self._winners[0], self._losers[0])]
        self.due = [*_neighbours(self._winners), *_neighbours(self._losers)] or final

    def _finish(self, final: tuple[Comparison, float]) -> None:
        (best, worst), p = final
        dropped: Dropped = "" if p > 0.5 else "tie" if p == 0.5 else "lost"
        self.outcome = Outcome(None if dropped else Pair(best, worst), dropped, self._ties, self._made)
        self.due = []


def _neighbours(numbers: Sequence[int]) -> list[Comparison]:
    return [(numbers[i], numbers[i + 1]) for i in range(0, len(numbers) - 1, 2)]


def _passed(played: Sequence[tuple[Comparison, float]], *, best: bool) -> list[int]:
    """Who goes on: the winners, or with ``best=False`` the losers."""
    return [a if (p >= 0.5) is best else b for (a, b), p in played]


def _ties(played: Sequence[tuple[Comparison, float]]) -> int:
    return sum(p == 0.5 for _, p in played)


def tournaments(wins: Callable[[list[tuple[int, int, int]]], Sequence[float]], counts: Sequence[int]) -> list[Outcome]:
    """A tournament for each prompt, all in step, so that a judge sees every prompt's comparisons of a stage at once.

    Args:
        wins: takes comparisons as (prompt, one sample, another) and returns, for each, the probability that the one is
            better.
        counts: samples of each prompt.
    """
    games = [Tournament(count) for count in counts]
    while asked := [(i, a, b) for i, game in enumerate(games) for a, b in game.due]:
        answers = list(wins(asked))
        if len(answers) != len(asked):
            raise UserError(f"The judge gave {len(answers)} answers to {len(asked)} comparisons.")
        given = iter(answers)
        for game in games:
            if game.due:
                game.answer([next(given) for _ in game.due])
    return [game.outcome for game in games if game.outcome is not None]


def tournament(wins: Callable[[list[Comparison]], Sequence[float]], count: int) -> Outcome:
    """The tournament of one prompt; ``wins`` takes the comparisons of a stage."""
    return tournaments(lambda asked: wins([(a, b) for _, a, b in asked]), [count])[0]
