"""Every word of the verdict from recorded numbers; the first case is a real probe's reading."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from align.cli.terms import TERMS, Explanation
from align.objectives import DPO, OBJECTIVES
from align.probes.displacement import Displacement, ProbeScores
from align.report import verdict as module
from align.report.verdict import NOT_MEASURED, verdict
from align.stats import wilson

ROOT = Path(__file__).resolve().parents[2]


def span(value: float, half: float = 0.5, n: int = 64) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


START: dict[str, Any] = {
    "step": 0,
    "n": 64,
    "against": "reference",
    "chosen": span(0.0, 0.0),
    "rejected": span(0.0, 0.0),
    "chosen_per_token": 0.0,
    "rejected_per_token": 0.0,
    "chosen_slope": None,
    "rejected_slope": None,
    "below": wilson(0, 64).to_json(),
    "margin": span(0.0, 0.0),
    "reward_margin": 0.0,
    "accuracy": wilson(32, 64).to_json(),
    "drift": span(0.0, 0.0),
    "drift_of": "others",
    "chosen_length": 224.0,
    "rejected_length": 200.0,
}


def records(**end: Any) -> list[dict[str, Any]]:
    """A start and an end that differs from it by ``end``; among them a log record without a probe."""
    healthy = {"chosen": span(1.0), "rejected": span(-8.0), "accuracy": wilson(48, 64).to_json(), "step": 300}
    last = copy.deepcopy(START) | healthy | end
    return [{"step": 0, "probe": START}, {"step": 100, "loss": 0.67}, {"step": 300, "loss": 0.6, "probe": last}]


def test_the_block_as_designed() -> None:
    suppressed = {
        "chosen": span(-21.3),
        "rejected": span(-25.4),
        "chosen_per_token": -0.095,
        "accuracy": wilson(46, 64).to_json(),
        "drift": span(0.11, 0.02),
    }
    found = verdict(
        [*records(**suppressed), {"generated_tokens": 100.0}, {"generated_tokens": 114.0}],
        run="runs/dpo-llama3.1-8b-lora",
        seconds=6720,
        objective="dpo",
        paths={"report": "runs/dpo-llama3.1-8b-lora/report.html", "resume": "align resume runs/dpo-llama3.1-8b-lora"},
    )
    assert found.lines() == [
        "Done in 1 h 52 min.  runs/dpo-llama3.1-8b-lora",
        "",
        "  learned       yes         held-out accuracy 0.72 [0.60, 0.81], start 0.50, n 64",
        "  suppression   yes         both answers became less likely: chosen -21.3, rejected -25.4 nats (1.2x as far)",
        "  dispersion    mild        +0.11 nats/token on 64 answers outside the pairs, while both sides fell",
        "  length        +14%        chosen answers are 12% longer than rejected ones",
        "  next          try objective.name=rpo, flex_dpo with a smaller beta_minus, or a larger beta",
        "",
        "  report   runs/dpo-llama3.1-8b-lora/report.html",
        "  resume   align resume runs/dpo-llama3.1-8b-lora",
    ]
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["findings"]["suppression"]["chosen"]["value"] == -21.3
    assert data["findings"]["degradation"]["word"] == "no"
    assert len(found.lines(full=True)) == len(found.lines()) + 2


def test_a_real_probe_reading_is_understood() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 40, (64,), generator=generator)
    at_start = -3.0 * lengths + torch.randn(64, generator=generator)
    probe = Displacement(objective=DPO())

    def scores(chosen: float, rejected: float, other: float) -> ProbeScores:
        noise = torch.randn(64, generator=generator)
        return ProbeScores(at_start + chosen + noise, at_start + rejected, lengths, lengths, at_start + other, lengths)

    start = ProbeScores(at_start, at_start, lengths, lengths, at_start, lengths)
    log = [{"probe": probe.read(0, start).to_json()}, {"probe": probe.read(50, scores(-30, -60, 9)).to_json()}]
    found = verdict(json.loads(json.dumps(log)))
    words = {finding.name: finding.word for finding in found.findings}
    assert words["learned"] == words["suppression"] == words["drop"] == words["dispersion"] == "yes"
    assert words["degradation"] == "still falling"
    assert found["dispersion"].facts["of"].startswith("answers of other held-out rows")


@pytest.mark.parametrize(
    ("hits", "n", "word"),
    [(40, 64, "yes"), (39, 64, "not shown"), (32, 64, "not shown"), (20, 64, "worse"), (290, 500, "yes")],
)
def test_learned_only_if_the_whole_interval_lies_above_the_start(hits: int, n: int, word: str) -> None:
    assert verdict(records(accuracy=wilson(hits, n).to_json()))["learned"].word == word


def test_learned_against_a_start_that_is_not_chance() -> None:
    log = records(accuracy=wilson(48, 64).to_json())
    log[0] = {"probe": START | {"margin": span(3.0), "reward_margin": 0.3, "accuracy": wilson(42, 64).to_json()}}
    found = verdict(log)["learned"]
    assert (found.word, found.facts["start"]) == ("not shown", 42 / 64)
    # reference and start agree up to rounding: which side of zero a margin fell on says nothing
    log[0] = {"probe": START | {"margin": span(1e-4), "reward_margin": 1e-5, "accuracy": wilson(42, 64).to_json()}}
    assert verdict(log)["learned"].facts["start"] == 0.5
    # without a reference the accuracy at the start is a measurement, however small the margin
    log[0] = {"probe": START | {"against": "start", "accuracy": wilson(42, 64).to_json()}}
    assert verdict(log)["learned"].facts["start"] == 42 / 64


def test_an_evaluation_on_more_pairs_takes_the_probes_place() -> None:
    log = records(accuracy=wilson(39, 64).to_json())
    found = verdict(log, held_out={"end": 0.71, "n": 500, "start": None})["learned"]
    assert found.word == "yes"
    assert found.text == "held-out accuracy 0.71 [0.67, 0.75], start 0.50, n 500"


def test_training_pairs_never_show_learning() -> None:
    found = verdict(records(), pairs="training")
    assert found["learned"].word == NOT_MEASURED
    assert found["learned"].text.startswith("no held-out pairs; on training pairs accuracy 0.75")
    assert "data.held_out" in found["next"].text
    assert "not measured  no held-out" in found.lines()[2]


@pytest.mark.parametrize(
    ("end", "word", "text"),
    [
        ({"chosen": span(2.0)}, "no", "chosen answers became more likely: chosen +2.0, rejected -8.0 nats"),
        ({"chosen": span(-0.3)}, "no", "chosen answers did not clearly move: chosen -0.3, rejected -8.0 nats"),
        ({"chosen": span(-4.0)}, "mild", "both answers became less likely: chosen -4.0, rejected -8.0 nats (2.0x"),
        ({"chosen": span(-4.0), "rejected": span(0.2)}, "mild", "chosen answers became less likely, rejected did not"),
        ({"chosen": span(-4.0), "rejected": span(3.0)}, "reversed", "chosen fell while rejected rose"),
        ({"chosen": span(-20.0)}, "yes", "both answers became less likely"),
        ({"chosen": span(-4.0), "chosen_per_token": -0.5}, "yes", "both answers became less likely"),
    ],
)
def test_suppression(end: dict[str, Any], word: str, text: str) -> None:
    found = verdict(records(**end))["suppression"]
    assert (found.word, found.text[: len(text)]) == (word, text)


def test_the_recipes_limit_is_the_limit() -> None:
    assert verdict(records(chosen=span(-4.0)), chosen_drop_nats=4.0)["suppression"].word == "yes"
    assert verdict(records(chosen=span(-30.0)), chosen_drop_nats=40.0)["suppression"].word == "mild"


@pytest.mark.parametrize(
    ("drift", "chosen", "word"),
    [
        (span(0.05, 0.02), span(-5.0), "mild"),
        (span(0.25, 0.02), span(-5.0), "yes"),
        (span(0.05, 0.06), span(-5.0), "not seen"),
        (span(0.30, 0.02), span(1.0), "not seen"),
        (span(-0.10, 0.02), span(-5.0), "not seen"),
        (span(-0.40, 0.02), span(-5.0), "drift"),
        (None, span(-5.0), NOT_MEASURED),
    ],
)
def test_dispersion(drift: Any, chosen: Any, word: str) -> None:
    assert verdict(records(drift=drift, chosen=chosen))["dispersion"].word == word


@pytest.mark.parametrize(
    ("below", "slope", "word"), [(64, -0.1, "still falling"), (64, 0.1, "yes"), (64, None, "yes"), (36, -0.1, "no")]
)
def test_degradation(below: int, slope: float | None, word: str) -> None:
    found = verdict(records(below=wilson(below, 64).to_json(), chosen_slope=slope))["degradation"]
    assert found.word == word
    assert f"in {below / 64:.0%} of 64 pairs" in found.text


@pytest.mark.parametrize(("per_token", "word"), [(-0.99, "no"), (-1.0, "yes")])
def test_drop(per_token: float, word: str) -> None:
    found = verdict(records(rejected_per_token=per_token, rejected_slope=-0.25))["drop"]
    assert (found.word, found.text) == (
        word,
        f"rejected answers -8.0 nats, {per_token:+.2f} per token, now -0.25 per step",
    )


@pytest.mark.parametrize(
    ("end", "options", "advice"),
    [
        ({}, {}, "nothing stands out"),
        ({"chosen": span(-30.0)}, {"objective": "rpo"}, "raise objective.eta"),
        ({"chosen": span(-30.0)}, {"objective": "kl"}, "add {name: nll, weight: 0.1}"),
        ({"chosen": span(-4.0), "rejected": span(3.0)}, {}, "see whether chosen and rejected are swapped"),
        ({"accuracy": wilson(10, 64).to_json()}, {}, "see whether chosen and rejected are swapped"),
        ({"drift": span(-0.5, 0.1)}, {}, "lower train.learning_rate"),
        ({"accuracy": wilson(35, 64).to_json()}, {}, "64 pairs are too few to tell"),
        ({"accuracy": wilson(510, 1000).to_json()}, {}, "train longer, or look at the pairs"),
        (
            {"accuracy": wilson(35, 64).to_json(), "chosen": span(0.1), "rejected": span(-0.4)},
            {},
            "the model hardly moved (0.40 nats)",
        ),
        ({"chosen": {"value": None, "low": None, "high": None, "n": 64}}, {}, "the run diverged"),
    ],
)
def test_next(end: dict[str, Any], options: dict[str, Any], advice: str) -> None:
    assert verdict(records(**end), **options)["next"].text.startswith(advice)


def test_growing_answers_get_advice_and_missing_ones_are_not_measured() -> None:
    longer = [*records(), {"generated_tokens": 100.0}, {"generated_tokens": 140.0}]
    assert verdict(longer)["length"].word == "+40%"
    assert verdict(longer)["next"].text.startswith("answers grew")
    found = verdict(records())["length"]
    assert (found.word, found.text) == (
        NOT_MEASURED,
        "no sampled answers; chosen answers are 12% longer than rejected ones",
    )


@pytest.mark.parametrize(
    ("tokens", "text"), [(150.0, "25% shorter than"), (200.5, "of one length"), (300.0, "50% longer")]
)
def test_lengths_of_the_pairs(tokens: float, text: str) -> None:
    assert text in verdict(records(chosen_length=tokens))["length"].text


@pytest.mark.parametrize("log", [[], [{"step": 1, "loss": 0.7}], [{"step": 0, "probe": START}], [{"probe": None}]])
def test_nothing_recorded_is_said_so(log: list[dict[str, Any]]) -> None:
    found = verdict(log)
    assert {finding.word for finding in found.findings} == {NOT_MEASURED, ""}
    assert found["next"].text == "set data.held_out, so that the next run can be judged"
    assert found.lines()[0] == "Done."


def test_one_late_reading_shows_changes_but_no_learning() -> None:
    found = verdict([records(chosen=span(-30.0))[-1]])
    assert (found["suppression"].word, found["learned"].word) == ("yes", NOT_MEASURED)


def test_scores_that_are_not_finite_are_not_measured() -> None:
    lost = {"value": None, "low": None, "high": None, "n": 64}
    found = verdict(records(chosen=lost, rejected=lost, accuracy=lost, below=lost, drift=lost))
    assert {found[name].word for name in ("suppression", "drop", "degradation", "dispersion")} == {NOT_MEASURED}
    assert found["suppression"].text == "the last scores were not finite"


def test_a_stopped_run_says_why() -> None:
    head = verdict(records(), run="runs/x", seconds=61, stopped="the loss is not finite at step 40.").headline
    assert head == "Stopped after 1 min: the loss is not finite at step 40.  runs/x"


def test_every_finding_is_explained_and_no_term_hides_an_objective() -> None:
    names = {finding.name for finding in verdict(records()).findings}
    assert names <= set(TERMS)
    assert {"suppression", "degradation", "dispersion", "drop", "learned"} <= set(TERMS)
    assert not set(TERMS) & set(OBJECTIVES)
    for explanation in TERMS.values():
        assert isinstance(explanation, Explanation)
        assert all(explanation)
        assert "\n" not in explanation.summary


def test_the_page_on_diagnostics_states_every_threshold_and_term() -> None:
    page = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    constants = {name: value for name, value in vars(module).items() if name.isupper() and isinstance(value, float)}
    assert len(constants) >= 9
    for name, value in constants.items():
        assert re.search(rf"`{name}` *\| *{value:g}\b", page), f"docs/diagnostics.md: {name} is {value:g}"
    for term in ("learned", "suppression", "drop", "degradation", "dispersion", "length", "next"):
        assert f"## {term}" in page.lower()
