"""ROUGE: the two published logs that hold texts, re-scored exactly."""

from __future__ import annotations

import sys

import pytest
from published_logs import FULL, RETAIN90
from sample_rows import real

from align.errors import UserError
from align.eval.log import ROUGES
from align.eval.log_read import read_log
from align.eval.rouge import rouge


@pytest.mark.parametrize("name", [FULL, RETAIN90])
def test_published_scores_from_their_texts(name: str) -> None:
    for items in read_log(real(name)).sets.values():
        found = rouge(items.ground_truth, items.generation)
        for key in ROUGES:
            assert found[key].tolist() == getattr(items, key).tolist()


def test_the_stemmer_and_the_two_sides() -> None:
    truth, text = ["the cats sat"], ["cat sat down there again"]
    assert rouge(truth, text)["rougeL_recall"][0] == pytest.approx(2 / 3)
    assert rouge(truth, text)["rougeL_f1"][0] == pytest.approx(2 * 2 / (3 + 5))
    assert rouge(truth, text, stemmer=False)["rougeL_recall"][0] == pytest.approx(1 / 3)


def test_texts_in_another_order_score_less() -> None:
    found = rouge(["one two three four"], ["four three two one"])
    assert (found["rouge1_recall"][0], found["rougeL_recall"][0]) == (1.0, 0.25)


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match="pip install rouge-score"):
        rouge([], [])
