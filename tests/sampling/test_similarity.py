"""METEOR against NLTK's own, values worked by hand, and the time it takes."""

from __future__ import annotations

import math
import random
import time
from itertools import combinations

import nltk
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.translate.meteor_score import single_meteor_score

from align.errors import UserError
from align.sampling import similarity as module
from align.sampling.similarity import among, meteor, similarity, wordnet

# few words, many repeated, with common stems: matches compete, cross and come from every stage
WORDS = ["the", "The", "cat", "cats", "sat", "sits", "sitting", "on", "mat", "mats", "run", "runs", "running", "Runner"]
WORDS += ["happy", "happily", "relate", "relational", "a"]
ALIKE = {"cat": ("dog", "mat"), "sat": ("run",), "the": ("a", "on"), "happi": ("relat",), "mat": ("sit",)}


class Lemma:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


class Synset:
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def lemmas(self) -> list[Lemma]:
        return [Lemma(name) for name in self.names]


class Stub(WordNetCorpusReader):
    """A WordNet that knows the words above, or none."""

    def __init__(self, words: dict[str, tuple[str, ...]]) -> None:
        self.words = words

    def ensure_loaded(self) -> None:
        pass

    def synsets(self, word: str, *args: object, **kwargs: object) -> list[Synset]:
        return [Synset(self.words[word])] if word in self.words else []


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of 0 to 30 words; a third of the second are rearrangements of the first."""
    source = random.Random(seed)
    found = []
    for number in range(count):
        first = source.choices(WORDS, k=source.randint(0, 30))
        second = source.sample(first, len(first)) if number % 3 == 0 else source.choices(WORDS, k=source.randint(0, 30))
        found.append((" ".join(first), "  ".join(second)))
    return found


@pytest.mark.parametrize("known", [{}, ALIKE], ids=["no synonyms", "synonyms"])
def test_equals_nltk(known: dict[str, tuple[str, ...]]) -> None:
    synonyms = (lambda word: known.get(word, ())) if known else None
    scattered = 0
    for reference, hypothesis in sentences(600):
        expected = single_meteor_score(reference.split(), hypothesis.split(), wordnet=Stub(known))
        assert meteor(reference, hypothesis, synonyms) == pytest.approx(expected, abs=1e-12)
        scattered += 0 < expected < 1
    assert scattered > 400
    differ = [meteor(r, h, lambda word: ALIKE.get(word, ())) != meteor(r, h) for r, h in sentences(100)]
    assert sum(differ) > 15  # the synonyms did matter


def test_worked_values() -> None:
    # 3 of 4 and 3 of 3 words in one run: P = 1, R = 3/4, mean 0.75 / (0.9 + 0.075), penalty 0.5 / 27
    assert meteor("the cat sat down", "The cat SAT") == pytest.approx((1 - 0.5 / 27) * 0.75 / 0.975, abs=1e-15)
    # the other way round P = 3/4, R = 1: 0.75 / (0.675 + 0.1)
    assert meteor("The cat SAT", "the cat sat down") == pytest.approx((1 - 0.5 / 27) * 0.75 / 0.775, abs=1e-15)
    # two runs of two words each
    assert meteor("a b c d", "c d a b") == pytest.approx(1 - 0.5 / 8, abs=1e-15)
    # stems: run and runs; no stem in common: good and better
    assert meteor("he runs", "he run") == pytest.approx(1 - 0.5 / 8, abs=1e-15)
    assert meteor("good", "better") == meteor("", "better") == meteor("good", "") == meteor("", "") == 0.0
    # of two equal words the last is matched first: in "a x a" the hypothesis "a x" takes places 2 and 1, two runs
    assert meteor("a x a", "a x") == pytest.approx((1 - 0.5) * (2 / 3) / (0.9 + 0.1 * 2 / 3), abs=1e-15)


@pytest.mark.parametrize("words", [1, 2, 7, 40])
def test_a_text_against_itself(words: int) -> None:
    text = " ".join(f"w{i}" for i in range(words))
    assert similarity(text, text) == pytest.approx(1 - 0.5 / words**3, abs=1e-15)


def test_both_orders() -> None:
    a, b = "the cat sat down", "the cat sat"
    assert meteor(a, b) != meteor(b, a)
    assert similarity(a, b) == similarity(b, a) == (meteor(a, b) + meteor(b, a)) / 2


def test_among_all_pairs_and_some() -> None:
    texts = [first for first, _ in sentences(9, seed=4)]
    each = {pair: similarity(texts[pair[0]], texts[pair[1]]) for pair in combinations(range(9), 2)}
    assert among(texts) == among(texts, 36) == among(texts, 1000) == pytest.approx(sum(each.values()) / 36, abs=1e-14)
    single = {among(texts, 1, seed=seed) for seed in range(400)}
    assert single == set(each.values())  # every pair can be drawn, and nothing else
    assert among(texts, 5, seed=3) == among(texts, 5, seed=3) != among(texts, 5, seed=4)
    # 35 of 36 different pairs leave out one
    left = {round(36 * among(texts) - 35 * among(texts, 35, seed=seed), 9) for seed in range(30)}
    assert left <= {round(value, 9) for value in each.values()}
    assert math.isnan(among([]))
    assert math.isnan(among(["alone"]))


def test_collapse_shows() -> None:
    source = random.Random(0)
    varied = [" ".join(f"w{source.randrange(500)}" for _ in range(30)) for _ in range(16)]
    collapsed = ["thank you for asking , I hope that helps you " + text[:20] for text in varied]
    assert among(varied) < 0.1
    assert among(collapsed) > 0.5


def test_speed() -> None:
    source = random.Random(0)
    texts = [" ".join(source.choices([f"word{i}s" for i in range(300)], k=100)) for _ in range(16)]
    among(texts[:2])  # imports nltk
    module._stem.cache_clear()
    begun = time.perf_counter()
    among(texts)
    assert time.perf_counter() - begun < 1


def test_wordnet_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match=r"python -m nltk\.downloader wordnet"):
        wordnet()
    monkeypatch.setattr(nltk.corpus, "wordnet", Stub({"car": ("auto", "motor_car", "car")}))
    assert wordnet()("car") == {"auto", "car"}
    assert meteor("my auto", "my car", wordnet()) == meteor("my car", "my car") > meteor("my auto", "my car")
