"""Whether a judge that compares depends on which answer it is shown first: mathematics on probabilities alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.probes.nulls import NULLS, not_above, span
from align.probes.stability import FEW, RESAMPLES, STABLE, Length, Scores, accuracy, length_of
from align.stats import Interval, bootstrap_mean, wilson

BIAS = 0.2  # mean of P(first shown better) - 1/2 from which a judge is said to prefer a place


@dataclass(frozen=True)
class AnswerOrder:
    """A judge that compares, on preference pairs in both orders.

    Attributes:
        pairs: how many pairs were asked; ``too_long`` were left out, since the judge does not read so many tokens.
        accuracy: share of pairs in which the mean of both orders prefers the chosen answer, ties as half;
            ``null_accuracy`` the same of the null models.
        bias: mean of P(first shown better) - 1/2 over both orders; its interval is a bootstrap over pairs.
        flips: share of pairs whose verdict changes with the order, among those with a verdict in both; None without.
        ties: pairs without a verdict (exactly 1/2) in one order, which ``flips`` leaves out.
        length: accuracy where the chosen answer is the longer or the shorter one.
    """

    pairs: int
    too_long: int
    accuracy: Interval
    null_accuracy: Mapping[str, Interval]
    bias: Interval
    flips: Interval | None
    ties: int
    length: Length

    def lines(self) -> list[str]:
        """One line for each finding."""
        return [f"{self.pairs} pairs, each in both orders", *self.sentences()]

    def sentences(self) -> list[str]:
        """What is found, with number and threshold."""
        a, b = self.accuracy, self.bias
        nulls = ", ".join(f"{name} {found.value:.3f}" for name, found in self.null_accuracy.items())
        prefers = abs(b.value) >= BIAS and not b.low <= 0 <= b.high
        word = f"PREFERS WHAT IS SHOWN {'FIRST' if b.value > 0 else 'LAST'}" if prefers else "no preference for a place"
        flips = "answer order: no pair has a verdict in both orders."
        if self.flips is not None:
            f, most = self.flips, 1 - STABLE
            verdict = "stable" if f.value <= most and f.n >= FEW else "unstable" if f.low > most else "unclear"
            flips = (
                f"answer order: the verdict of {span(f.value, f)} of {f.n} pairs changes with "
                f"the order (threshold {most:.2f}): {verdict}."
            )
        said = [
            f"accuracy {span(a.value, a)}, both orders averaged; {nulls}.",
            f"position bias: P(first shown better) is {b.value:+.3f} [{b.low:+.3f}, {b.high:+.3f}] from one half "
            f"(threshold {BIAS:g}): {word}.",
            flips,
            self.length.sentence(),
            not_above("accuracy", a.value, a, {name: found.value for name, found in self.null_accuracy.items()}),
            "Changes of the texts are not tried: they are measured by scores, and this judge compares.",
        ]
        return [sentence for sentence in said if sentence]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "pairs": self.pairs,
            "too_long": self.too_long,
            "accuracy": self.accuracy.to_json(),
            "null_accuracy": {name: found.to_json() for name, found in self.null_accuracy.items()},
            "position_bias": self.bias.to_json(),
            "flips": self.flips and self.flips.to_json(),
            "ties": self.ties,
            "length": self.length.to_json(),
            "sentences": self.sentences(),
        }


def answer_order(
    chosen_first: Sequence[float], rejected_first: Sequence[float], lengths: Scores, *, too_long: int = 0, seed: int = 0
) -> AnswerOrder:
    """What depends on the order of two answers.

    Args:
        chosen_first: P(first shown better) of each pair [n] where the chosen answer is shown first.
        rejected_first: the same where the rejected answer is.
        lengths: of the answers, for the null models.
    """
    p, q = np.asarray(chosen_first, float), np.asarray(rejected_first, float)
    better = 0.5 + (p - q) / 2  # in this order of computation equal probabilities are a tie
    scores = Scores(better.tolist(), (1 - better).tolist())
    verdicts = (p != 0.5) & (q != 0.5)
    changed = (p > 0.5) == (q > 0.5)  # the same place wins twice, so that the answers change theirs
    return AnswerOrder(
        len(p),
        too_long,
        accuracy(p - q),
        {name: accuracy(sign * lengths.margin) for name, sign in zip(NULLS, (1, -1), strict=True)},
        bootstrap_mean((p + q) / 2 - 0.5, seed, resamples=RESAMPLES),
        wilson(int(changed[verdicts].sum()), int(verdicts.sum())) if verdicts.any() else None,
        int((~verdicts).sum()),
        length_of(scores, lengths),
    )
