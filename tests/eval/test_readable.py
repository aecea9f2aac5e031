"""Items that are too long for a reward model: every probe leaves them out whole, counts them and says so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.eval.consistency import probe
from align.eval.contrast import Contrasts
from align.eval.readable import readable
from align.eval.reward_bench import measure as measure_benchmark
from align.eval.reward_bench_rows import Item
from align.eval.stability import PADDING, Pair, measure, measure_order
from align.judges.judge import CompareJudge, ScoreJudge
from align.probes.consistency import ContrastPair


class Short(ScoreJudge):
    """Reads so many characters, and fails on more."""

    name = "short"

    def __init__(self, most: int) -> None:
        self.most = most

    def fits(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[bool]:
        return [len(prompt) + len(text) <= self.most for prompt, text in zip(prompts, responses, strict=True)]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        assert all(self.fits(prompts, responses))
        return [float(len(text)) for text in responses]


def test_contrast_pairs() -> None:
    pairs = [ContrastPair("ask", "one", "beg", other) for other in ("other", "o" * 8)]
    said: list[str] = []
    result = probe(Short(10), Contrasts("somewhere", pairs, "as they are"), said.append)
    assert said == ["1 contrast pairs from somewhere; dropped 1 with more tokens than short reads"]
    assert result.contrasts.pairs == pairs[:1]
    data = result.to_json()
    assert (data["items"], data["dropped"]) == (1, {"with more tokens than short reads": 1})
    assert len(result.log()["log"]) == 1


def test_preference_pairs_and_what_becomes_of_them() -> None:
    # the padding alone makes the second pair too long, so that it counts nowhere
    pairs = [Pair("ask", "yes", "no" + "o" * i) for i in (0, 30, 300)]
    said: list[str] = []
    found = measure(pairs, Short(3 + 2 + len(PADDING)), 0, said.append)
    assert said[0] == "2 pairs left out: more tokens than short reads"
    assert (found.pairs, found.too_long, found.to_json()["too_long"]) == (1, 2, 2)
    assert {row.n for row in found.rows} == {1}


def test_rows_of_a_benchmark() -> None:
    items = [Item("ask", ("yes", "n" * i), 1, "donotanswer", "Safety") for i in (2, 4, 40)]
    # put as Question: ask, Answer: and a blank before the answer
    result = measure_benchmark(Short(26), "rewardbench", items, conversational=False)
    assert (result.found["Safety"].n, result.found["Safety"].value) == (2, 0.5)
    assert result.nulls["longest"]["Safety"].n == 2
    assert result.notes == ["1 row left out: more tokens than short reads"]
    assert result.to_json()["too_long"] == 1


def test_comparisons_are_asked_in_both_orders() -> None:
    class Fussy(CompareJudge):
        name = "fussy"

        def fits(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[bool]:
            return [len(text) < 9 for text in shown]

        def prefer_first(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[float]:
            return [0.5] * len(prompts)

    found = measure_order([Pair("ask", "yes", "n" * i) for i in (2, 40)], Fussy(), 0, lambda _: None)
    assert (found.pairs, found.too_long, found.to_json()["too_long"]) == (1, 1, 1)
    items = [Item("ask", (" yes", "n" * i), 1, "donotanswer", "Safety") for i in (2, 40)]
    assert measure_benchmark(Fussy(), "rewardbench", items, conversational=False).too_long == 1


def test_nothing_is_left() -> None:
    with pytest.raises(UserError) as told:
        readable(Short(3), [[("ask", "one")], [("beg", "two")]], "pair")
    assert str(told.value) == "Nothing is left: 2 pairs left out: more tokens than short reads. Give shorter ones."
