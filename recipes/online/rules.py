"""Rules that judge answers in the small recipes, where no reward model is at hand. Run with --allow-code."""

from __future__ import annotations

import math
from collections.abc import Sequence

PLAIN = frozenset(("a", "an", "in", "is", "it", "of", "the", "was"))
WORDS = 5  # of an answer, without a penalty
PENALTY = 0.02  # for each word more or less


def plain_words(prompts: Sequence[object], responses: Sequence[str]) -> list[float]:
    """Share of an answer's words that are among the eight plainest, less a penalty for odd lengths.

    It does not look at the prompt, so that one answer to everything has the highest score of all.
    """
    return [_plain(text) for text in responses]


def plainer(prompts: Sequence[object], a: Sequence[str], b: Sequence[str]) -> list[float]:
    """Probability that ``a`` is the plainer answer: logistic in the difference of ``plain_words``."""
    return [1 / (1 + math.exp(-10 * (_plain(x) - _plain(y)))) for x, y in zip(a, b, strict=True)]


def _plain(text: str) -> float:
    words = [word.strip(".,").lower() for word in text.split()]
    return sum(word in PLAIN for word in words) / max(len(words), 1) - PENALTY * abs(len(words) - WORDS)
