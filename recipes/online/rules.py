"""A rule that judges answers without reading the question: what a policy without a prior collapses to."""

from __future__ import annotations

from collections.abc import Sequence

PLAIN = frozenset(("a", "an", "in", "is", "it", "of", "the", "was"))
WORDS = 5  # of an answer, without a penalty
PENALTY = 0.02  # for each word more or less


def plain_words(prompts: Sequence[object], responses: Sequence[str]) -> list[float]:
    """Share of an answer's words that are among the eight plainest, less a penalty for odd lengths.

    It does not look at the prompt, so that one answer to everything has the highest score of all.
    """
    return [_plain(text) for text in responses]


def _plain(text: str) -> float:
    words = [word.strip(".,").lower() for word in text.split()]
    return sum(word in PLAIN for word in words) / max(len(words), 1) - PENALTY * abs(len(words) - WORDS)
