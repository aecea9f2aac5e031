"""Words about the model's own text, from recorded readings: what is said, on which numbers, and what is not said."""

from __future__ import annotations

from typing import Any

import pytest

from align.report.preference import preference_verdict
from align.report.verdict import NOT_MEASURED
from align.stats import wilson

PAIRS = {"chosen": {"value": 1.0, "low": 0.5, "high": 1.5, "n": 64}}
PAIRS["rejected"] = {"value": -8.0, "low": -9.0, "high": -7.0, "n": 64}
PAIRS["accuracy"] = wilson(48, 64).to_json()
PROBE: dict[str, Any] = {"against": "reference", "margin": {"value": 0.0}, "reward_margin": 0.0, **PAIRS}


def span(value: float, half: float = 0.1, n: int = 16) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


START: dict[str, Any] = {
    "n": 32,
    "prompts": 16,
    "limit": 64,
    "reverse_kl": span(0.0, 0.0),
    "reverse_kl_per_token": span(0.0, 0.0),
    "reference_logp": span(-0.4),
    "astray": wilson(0, 16).to_json(),
    "bar": -4.5,
    "entropy": span(0.36),
    "likeness": 0.08,
    "distinct": 0.75,
    "tokens": span(9.0),
    "cut": 0.0,
    "against": "reference",
    "why": "",
}


def verdict(probe: dict[str, Any] | None = None, **end: Any) -> Any:
    log = [
        {"step": 0, "probe": {"step": 0, **PROBE, "accuracy": wilson(32, 64).to_json()}, "own_text": START},
        {"step": 10, "loss": 0.5, "own_text": START | {"astray": wilson(16, 16).to_json()}},  # the last one counts
        {"step": 20, "probe": {"step": 20, **PROBE, **(probe or {})}, "own_text": START | end},
    ]
    return preference_verdict(log, objective="dpo")


# what the quickstart's DPO run recorded
GONE = {"astray": wilson(12.5, 16).to_json(), "reference_logp": span(-7.3), "entropy": span(3.91)}
GONE |= {"reverse_kl": span(64.1, 15.0), "reverse_kl_per_token": span(3.44)}


def test_text_that_nobody_wrote_is_said_with_number_and_threshold() -> None:
    found = verdict(**GONE)
    assert found["astray"].word == "yes"
    assert found["astray"].text == (
        "78% [54%, 92%] of its own answers are rarer than nearly all of the pairs' and of its earlier ones (limit "
        "50%): -7.3 nats/token under the reference, -0.4 at the start, n 16"
    )
    (line,) = (line for line in found.lines() if line.startswith("  astray"))
    assert line.split(maxsplit=2)[1:] == ["yes", found["astray"].text]
    assert found["next"].text.startswith("read some answers; then try objective.name=rpo")
    assert "dispersion" in found.shown  # it was not measured
    drift = {"drift": span(-2.0), "drift_of": "samples that the starting policy drew at these prompts"}
    assert "dispersion" not in verdict(probe=drift, **GONE).shown  # not seen on other answers, but on these
    assert "dispersion" in verdict(probe=drift).shown
    assert (found["distance"].word, found["distance"].text) == (
        "64.1",
        "nats per own answer to the reference [49.1, 79.1], 3.44 per token, n 16; entropy 0.36 to 3.91 nats/token",
    )
    assert not any(line.startswith("  distance") for line in found.lines())  # only of a run that trains on it


@pytest.mark.parametrize(
    ("hits", "n", "word"),
    [
        (16, 16, "yes"),
        (8, 16, "yes"),  # one half, and surely more than a tenth
        (7.5, 16, "partly"),
        (4, 16, "partly"),  # the interval begins at 0.102
        (3.5, 16, "no"),
        (0, 16, "no"),
        (1, 1, "yes"),  # Wilson's interval of one in one begins at 0.21
        (2, 3, "yes"),
        (1, 3, "no"),
        (0.5, 1, "no"),
    ],
)
def test_astray_by_the_share_and_its_interval(hits: float, n: int, word: str) -> None:
    found = verdict(astray=wilson(hits, n).to_json())
    assert found["astray"].word == word
    assert any(line.startswith("  astray") for line in found.lines()) is (word != "no")
    assert ("(limit 10%)" in found["astray"].text) is (word != "yes")
    if word == "partly":
        assert found["next"].text == "look at astray (partly): align explain astray"


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (
            {"likeness": 0.72},
            "its answers to different prompts became alike: METEOR 0.72, limit 0.3, 0.08 at the start",
        ),
        (
            {"likeness": 0.0, "distinct": 1 / 32},  # it ends at once: empty texts have no words in common
            "only 3% of its answers are different texts, limit 50%, 75% at the start",
        ),
    ],
)
def test_a_model_that_says_the_same_to_everybody(end: dict[str, Any], text: str) -> None:
    found = verdict(**end)
    assert (found["collapse"].word, found["collapse"].text) == ("yes", text)
    assert any(line.startswith("  collapse") for line in found.lines())
    assert found["next"].text == "the model says the same to everybody: lower train.learning_rate, or raise beta"


def test_what_was_alike_at_the_start_is_no_collapse() -> None:
    log = [
        {"step": 0, "probe": {"step": 0, **PROBE}, "own_text": START | {"likeness": 0.5, "distinct": 0.2}},
        {"step": 9, "probe": {"step": 9, **PROBE}, "own_text": START | {"likeness": 0.6, "distinct": 0.1}},
    ]
    assert preference_verdict(log)["collapse"].word == "no"
    assert verdict(likeness=0.3, distinct=0.5)["collapse"].word == "no"  # at the limits


def test_what_was_not_measured_is_called_so_and_why() -> None:
    why = {"astray": None, "reference_logp": None, "reverse_kl": None, "against": "", "why": "the reference moves"}
    found = verdict(**why)
    assert (found["astray"].word, found["astray"].text) == (
        NOT_MEASURED,
        "its own answers are compared with nothing: the reference moves",
    )
    assert "distance" not in {finding.name for finding in found.findings}
    lost = {"value": None, "low": None, "high": None, "n": 16}
    broken = verdict(astray=lost, reference_logp=lost, likeness=None)
    assert (broken["astray"].word, broken["astray"].text) == (NOT_MEASURED, "the last scores were not finite")
    assert broken["collapse"].word == NOT_MEASURED
    without = preference_verdict([{"step": 0, "probe": {"step": 0, **PROBE}}, {"step": 9, "probe": PROBE}])
    assert {without[name].word for name in ("astray", "collapse")} == {NOT_MEASURED}
    assert without["astray"].text == "needs samples at the start and at the end (watch.probe_answers)"


def test_an_objective_that_compares_no_pairs_may_go_astray_as_well() -> None:
    records = [{"step": 0, "own_text": START}, {"step": 10, "own_text": START | GONE}]
    found = preference_verdict(records, compares_pairs=False)
    assert [line.split()[:2] for line in found.lines()[2:-1]] == [["loss", "not"], ["astray", "yes"]]


def test_a_run_that_moved_nothing_is_not_called_astray() -> None:
    found = verdict()
    assert (found["astray"].word, found["collapse"].word, found["distance"].word) == ("no", "no", "0.0")
    assert not any(line.startswith(("  astray", "  collapse")) for line in found.lines())


def dispersion(**end: Any) -> tuple[str, str]:
    both_fell = {side: span(-5.0, 1.0, 64) for side in ("chosen", "rejected")}
    samples = {"drift_of": "samples that the starting policy drew at these prompts"}
    last = PROBE | both_fell | samples | {"borrowed": span(-0.05, 0.2, 64)} | end
    found = preference_verdict([{"step": 0, "probe": {"step": 0, **PROBE}}, {"step": 9, "probe": last}])["dispersion"]
    return found.word, found.text


def test_dispersion_by_what_the_model_wrote_at_the_start_needs_the_chosen_ones_to_fall() -> None:
    assert dispersion(drift=span(-1.9)) == (
        "yes",
        "-0.05 nats/token on 64 answers outside the pairs, -1.90 on what the model wrote at the start, and both sides "
        "fell: likelihood went to other text",
    )
    # the start's text made room for chosen answers, as it should
    assert dispersion(drift=span(-1.9), chosen=span(25.0, 1.0, 64))[0] == "not seen"
    assert dispersion(drift=span(-0.24))[0] == "not seen"
    assert dispersion(drift=span(-0.3, 0.4))[0] == "not seen"
    # borrowed answers rose: they alone can
    assert dispersion(drift=span(-0.1), borrowed=span(0.4))[0] == "yes"
    assert dispersion(drift=span(-0.1), borrowed=span(0.2))[0] == "mild"
    # samples above 0 are chance, not a rise
    assert dispersion(drift=span(0.4), borrowed=None)[0] == "not seen"
    assert dispersion(drift=span(-1.9), borrowed=span(-0.3), chosen=span(25.0, 1.0, 64))[0] == "drift"


@pytest.mark.parametrize(("hits", "word"), [(64, "spent"), (40, "spent"), (39, "left"), (0, "left")])
def test_signal(hits: int, word: str) -> None:
    last = PROBE | {"signal": span(0.07), "spent": wilson(hits, 64).to_json()}
    found = preference_verdict([{"step": 0, "probe": {"step": 0, **PROBE}}, {"step": 9, "probe": last}])["signal"]
    assert found.word == word
    assert found.text == f"7% of the pull at the start is left; hardly any in {hits / 64:.0%} of 64 pairs"
