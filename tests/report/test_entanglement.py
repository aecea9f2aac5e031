"""The line about gradient entanglement: its word from counts, and when it is shown."""

from __future__ import annotations

from typing import Any

import pytest
from report.test_preference import records, span

from align.report.entanglement import entanglement
from align.report.preference import preference_verdict
from align.report.verdict import NOT_MEASURED, Finding


def reading(n: int = 8, **cases: int) -> dict[str, Any]:
    """One of ``n`` pairs; what the cases leave is ideal."""
    named = {"ideal": n - sum(cases.values()), "both_up": 0, "both_down": 0, "reversed": 0, "still": 0} | cases
    return {
        "of": "last block",
        "block": "model.layers.29",
        "n": n,
        "left_out": 0,
        "cosine": span(0.8, 0.1, n),
        "cases": named,
        "best": 0.7,
        "share_at_one": 0.125,
        "share_at_best": 0.75,
    }


def found(end: dict[str, Any], start: dict[str, Any] | None = None) -> Finding:
    return entanglement([{"step": 0, "entanglement": start or reading()}, {"step": 9, "entanglement": end}])


def test_the_sentence_has_the_count_its_interval_and_the_weights() -> None:
    one = found(reading(both_down=7))
    assert one.word == "both down"
    assert one.text == (
        "both answers fall together in 7 of 8 pairs [0.53, 0.98], to first order of SGD (gradients over the last block "
        "model.layers.29, cosine +0.80); beta_minus / beta_plus of 0.70 would part 75% of them, equal betas part 12%"
    )
    assert one.facts["cases"]["both_down"] == 7
    assert one.facts["start_cases"]["ideal"] == 8
    assert one.facts["shares"]["both_down"]["n"] == 8


@pytest.mark.parametrize(
    ("cases", "n", "word"),
    [
        ({}, 8, "ideal"),
        ({"both_down": 6}, 8, "not clear"),  # Wilson's interval starts at 0.41
        ({"both_down": 7}, 8, "both down"),
        ({"both_up": 8}, 8, "both up"),
        ({"reversed": 8}, 8, "reversed"),
        ({"still": 8}, 8, "not clear"),
        ({}, 3, "not clear"),  # three of three are no majority that is sure
        ({"both_down": 21}, 30, "both down"),
        ({"both_down": 20}, 30, "not clear"),
    ],
)
def test_a_word_takes_a_majority_that_is_sure(cases: dict[str, int], n: int, word: str) -> None:
    assert found(reading(n, **cases)).word == word


def test_without_a_majority_the_cases_are_counted() -> None:
    one = found(reading(both_down=4, both_up=2, reversed=1) | {"share_at_best": 0.125})
    assert one.text == (
        "of 8 pairs 1 ideal, 2 both up, 4 both down, 1 reversed, to first order of SGD (gradients over the last block "
        "model.layers.29, cosine +0.80); 1 are reversed: the loss pulls them the wrong way"
    )


def test_what_adam_makes_of_it_stands_beside_it() -> None:
    adam = {"of": "last block, as Adam scales them", "n": 8, "cases": {"ideal": 5, "both_down": 3}}
    one = found(reading(both_down=7) | {"adam": adam, "share_at_best": 0.125})
    assert one.text.endswith("cosine +0.80); with Adam's scale in 3 of 8")
    assert one.facts["adam_cases"] == {"ideal": 5, "both_down": 3}
    assert one.facts["claim"] == (
        "The cases are exact to first order for a small step of SGD on each pair alone. Adam moves weights by scales "
        "of its own and along past gradients, and other pairs push the same weights, so of a real step they are a hint."
    )
    assert found(reading()).facts["adam_cases"] is None


def test_what_was_not_measured_is_not_measured() -> None:
    assert entanglement([{"step": 0, "loss": 1.0}]).word == NOT_MEASURED
    one = found({"of": "head", "n": 0, "left_out": 8})
    assert (one.word, one.text) == (NOT_MEASURED, "no gradient of 8 pairs was finite and other than 0")


SUPPRESSED = {"chosen": span(-30.0, 5.0), "rejected": span(-60.0, 5.0)}
IMITATED = {"chosen": span(9.0), "rejected": span(8.0)}


@pytest.mark.parametrize(
    ("end", "cases", "shown"),
    [
        (SUPPRESSED, {"both_down": 8}, True),
        (SUPPRESSED, {"both_down": 5}, False),
        (SUPPRESSED, {"both_up": 8}, False),
        ({}, {"both_down": 8}, False),  # a healthy run
        (IMITATED, {"both_up": 8}, True),
        ({}, {"reversed": 8}, True),
    ],
)
def test_it_is_shown_where_it_says_why_answers_moved_together(
    end: dict[str, Any], cases: dict[str, int], shown: bool
) -> None:
    seen = records(**end)
    seen[-1]["entanglement"] = reading(**cases)
    verdict = preference_verdict(seen)
    assert ("entanglement" in verdict.shown) is shown
    assert any(line.startswith("  entanglement") for line in verdict.lines()) is shown
    assert verdict.to_json()["findings"]["entanglement"]["n"] == 8
