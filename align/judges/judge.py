"""What a judge is. Scores order the answers to one prompt; comparisons say how likely the first of two is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from align.data.tokens.samples import Prompt


class ScoreJudge(ABC):
    """Gives every response a number; higher is better, and only responses to one prompt are compared.

    Attributes:
        name: what it is called in files and messages.
    """

    name: str

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One score for each response, which answers the prompt of the same place."""

    def fits(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[bool]:
        """For each response with its prompt whether it is short enough to be scored; here everything is."""
        return [True] * len(prompts)


class CompareJudge(ABC):
    """Compares two responses to one prompt, in both orders.

    Attributes:
        name: what it is called in files and messages.
        bias: sum over comparisons of P(the first shown is better) - 1/2, both orders averaged, and their number.
        undecided: answers of a judge that writes which named neither response, and all its answers.
        either: what a judge that writes is to name.
    """

    name: str
    either = "A nor B"

    def __init__(self) -> None:
        self.bias = (0.0, 0)
        self.undecided = (0, 0)

    def compare(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """Probability that ``a`` is the better response, for each prompt; the mean over both orders of showing them."""
        n = len(prompts)
        first = self.prefer_first([*prompts, *prompts], [*a, *b], [*b, *a])
        total, count = self.bias
        self.bias = (total + sum((first[i] + first[n + i]) / 2 - 0.5 for i in range(n)), count + n)
        # in this order equal answers give exactly one half, which is a tie
        return [0.5 + (first[i] - first[n + i]) / 2 for i in range(n)]

    @abstractmethod
    def prefer_first(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[float]:
        """Probability that the response shown first is preferred, in this one order."""

    def fits(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[bool]:
        """For each comparison whether it is short enough to be asked, in this order; here everything is."""
        return [True] * len(prompts)

    @property
    def position_bias(self) -> float:
        """Mean of P(first shown is better) - 1/2 over all comparisons so far: 0 for a judge that has none."""
        total, count = self.bias
        return total / count if count else 0.0


Judging = ScoreJudge | CompareJudge

OFTEN, FEW = 0.1, 20  # share of answers that decide nothing which is worth a warning, and answers that show none


def undecided_warning(undecided: tuple[int, int], either: str = CompareJudge.either) -> str:
    """What to say of a judge that often names neither response; nothing where it does so seldom."""
    neither, answers = undecided
    if answers < FEW or neither < OFTEN * answers:
        return ""
    return (
        f"the judge named neither {either} in {neither:,} of {answers:,} answers ({neither / answers:.0%}), which "
        "decides nothing. Take a model that follows instructions, or put the question otherwise "
        "(judge.endpoint.template)"
    )
