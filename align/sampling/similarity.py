"""How alike texts are: METEOR in both orders, the measure by which a policy is caught that says one thing to everybody.

METEOR (Lavie and Agarwal 2007, https://aclanthology.org/W07-0734) with the parameters and the order of matching of
NLTK's ``meteor_score``: words are split at white space and lower-cased, and matched where they are equal, then where
their Porter stems are, then where they are synonyms. Synonyms need WordNet, which no package brings along, so they are
left out unless asked for; values are then equal to NLTK's with an empty WordNet.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from itertools import combinations, pairwise

from align.errors import UserError

Synonyms = Callable[[str], Iterable[str]]

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5  # weight of recall, shape and weight of the penalty for scattered matches

_Words = list[tuple[int, str]]  # place in the text, and the word or its stem


def meteor(reference: str, hypothesis: str, synonyms: Synonyms | None = None) -> float:
    """METEOR of ``hypothesis`` against ``reference``, from 0 to 1; not symmetric, since recall weighs more.

    With m matched words of r and h, in c runs that stand together in both texts, P = m/h and R = m/r:
    (1 - 0.5 (c/m)^3) * P R / (0.9 P + 0.1 R), and 0 where nothing matches. A text of n words gets 1 - 0.5/n^3 against
    itself.

    Args:
        synonyms: words that mean the same, of a word or of its stem (as ``wordnet()`` gives); None for none.
    """
    ours, theirs = _words(hypothesis), _words(reference)
    h, r = len(ours), len(theirs)
    pairs, ours, theirs = _match(ours, theirs, lambda word: (word,))
    more, ours, theirs = _match(_stemmed(ours), _stemmed(theirs), lambda stem: (stem,))
    pairs += more
    if synonyms is not None:
        # stems are looked up, not words: NLTK does so
        pairs += _match(ours, theirs, lambda stem: {stem, *synonyms(stem)})[0]
    matched = len(pairs)
    if not matched:
        return 0.0
    pairs.sort()
    runs = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in pairwise(pairs))
    precision, recall = matched / h, matched / r
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    return (1 - GAMMA * (runs / matched) ** BETA) * mean


def similarity(a: str, b: str, synonyms: Synonyms | None = None) -> float:
    """Mean METEOR of two texts over both orders, from 0 to 1."""
    return (meteor(a, b, synonyms) + meteor(b, a, synonyms)) / 2


def among(texts: Sequence[str], pairs: int | None = None, seed: int = 0, synonyms: Synonyms | None = None) -> float:
    """Mean similarity over all pairs of ``texts``, or over ``pairs`` different ones drawn at random where more exist.

    nan for fewer than two texts.
    """
    count = len(texts)
    every = count * (count - 1) // 2
    if not every:
        return math.nan
    if pairs is None or pairs >= every:
        chosen: Iterable[tuple[int, int]] = combinations(range(count), 2)
    else:
        # pairs (i, j > i) are numbered row by row; starts[i] is the number of the first with i
        starts = [i * (2 * count - i - 1) // 2 for i in range(count)]
        numbers = random.Random(seed).sample(range(every), pairs)
        rows = [bisect_right(starts, number, hi=count - 1) - 1 for number in numbers]
        chosen = [(i, i + 1 + number - starts[i]) for i, number in zip(rows, numbers, strict=True)]
    values = [similarity(texts[i], texts[j], synonyms) for i, j in chosen]
    return math.fsum(values) / len(values)


def wordnet() -> Synonyms:
    """Synonyms of single words as WordNet has them.

    Raises:
        UserError: where nltk has no copy of WordNet.
    """
    from nltk.corpus import wordnet as corpus  # type: ignore[import-untyped]

    try:
        corpus.ensure_loaded()
    except LookupError as error:
        raise UserError(
            "METEOR with synonyms needs WordNet, and nltk finds no copy of it: python -m nltk.downloader wordnet."
        ) from error

    @cache
    def synonyms(word: str) -> frozenset[str]:
        names = (lemma.name() for synset in corpus.synsets(word) for lemma in synset.lemmas())
        return frozenset(name for name in names if "_" not in name)

    return synonyms


def _words(text: str) -> _Words:
    return list(enumerate(text.lower().split()))


def _stemmed(words: _Words) -> _Words:
    return [(place, _stem(word)) for place, word in words]


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return _stemmer()(word)


@cache
def _stemmer() -> Callable[[str], str]:
    # here, since importing it takes a second
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

    return PorterStemmer().stem


def _match(
    hypothesis: _Words, reference: _Words, forms: Callable[[str], Iterable[str]]
) -> tuple[list[tuple[int, int]], _Words, _Words]:
    """Pairs of places (hypothesis, reference) whose words match, and the words of both that are left.

    From its end on, each word of the hypothesis takes the last free word of the reference that is one of its ``forms``.
    """
    free: dict[str, list[int]] = {}
    for place, word in reference:
        free.setdefault(word, []).append(place)
    pairs: list[tuple[int, int]] = []
    left: _Words = []
    for place, word in reversed(hypothesis):
        found = max((f for f in forms(word) if free.get(f)), key=lambda f: free[f][-1], default=None)
        if found is None:
            left.append((place, word))
        else:
            pairs.append((place, free[found].pop()))
    taken = {other for _, other in pairs}
    return pairs, left[::-1], [item for item in reference if item[0] not in taken]
