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
from align.cli.terms_own_text import OWN_TEXT
from align.objectives import DPO, OBJECTIVES
from align.probes.displacement import Displacement
from align.probes.scores import ProbeScores
from align.report import thresholds
from align.report.preference import preference_verdict
from align.report.verdict import NOT_MEASURED
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
    "own_accuracy": None,
    "longer": 0.5,
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
    found = preference_verdict(
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
    assert len(found.lines(full=True)) == len(found.lines()) + 8


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
    found = preference_verdict(json.loads(json.dumps(log)))
    words = {finding.name: finding.word for finding in found.findings}
    assert words["learned"] == words["suppression"] == words["drop"] == words["dispersion"] == "yes"
    assert words["degradation"] == "still falling"
    assert found["dispersion"].facts["of"].startswith("answers of other held-out rows")


@pytest.mark.parametrize(
    ("hits", "n", "word"),
    [(40, 64, "yes"), (39, 64, "not shown"), (32, 64, "not shown"), (20, 64, "worse"), (290, 500, "yes")],
)
def test_learned_only_if_the_whole_interval_lies_above_the_start(hits: int, n: int, word: str) -> None:
    assert preference_verdict(records(accuracy=wilson(hits, n).to_json()))["learned"].word == word


def test_learned_against_a_start_that_is_not_chance() -> None:
    log = records(accuracy=wilson(48, 64).to_json())
    log[0] = {"probe": START | {"margin": span(3.0), "reward_margin": 0.3, "accuracy": wilson(42, 64).to_json()}}
    found = preference_verdict(log)["learned"]
    assert (found.word, found.facts["start"]) == ("not shown", 42 / 64)
    # reference and start agree up to rounding: which side of zero a margin fell on says nothing
    log[0] = {"probe": START | {"margin": span(1e-4), "reward_margin": 1e-5, "accuracy": wilson(42, 64).to_json()}}
    assert preference_verdict(log)["learned"].facts["start"] == 0.5
    # without a reference the accuracy at the start is a measurement, however small the margin
    log[0] = {"probe": START | {"against": "start", "accuracy": wilson(42, 64).to_json()}}
    assert preference_verdict(log)["learned"].facts["start"] == 42 / 64


def test_an_evaluation_on_more_pairs_takes_the_probes_place() -> None:
    log = records(accuracy=wilson(39, 64).to_json())
    found = preference_verdict(log, held_out={"end": 0.71, "n": 500, "start": None})["learned"]
    assert found.word == "yes"
    assert found.text == "held-out accuracy 0.71 [0.67, 0.75], start 0.50, n 500"


def test_training_pairs_never_show_learning() -> None:
    found = preference_verdict(records(), pairs="training")
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
    found = preference_verdict(records(**end))["suppression"]
    assert (found.word, found.text[: len(text)]) == (word, text)


def test_the_recipes_limit_is_the_limit() -> None:
    assert preference_verdict(records(chosen=span(-4.0)), chosen_drop_nats=4.0)["suppression"].word == "yes"
    assert preference_verdict(records(chosen=span(-30.0)), chosen_drop_nats=40.0)["suppression"].word == "mild"


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
    assert preference_verdict(records(drift=drift, chosen=chosen))["dispersion"].word == word


def test_a_style_that_lost_is_no_text_of_all_kinds() -> None:
    """Half of the borrowed answers are rejected ones elsewhere; a preference for a style lowers those, as it should."""
    fell = {"drift": span(-0.68, 0.1), "rejected": span(-14.0)}
    found = preference_verdict(records(**fell, borrowed_chosen=span(0.05, 0.1, 32)))["dispersion"]
    assert (found.word, found.text) == (
        "not seen",
        "-0.68 nats/token on 64 answers outside the pairs (+0.05 on those that are chosen elsewhere)",
    )
    for kept, word in (
        (span(-0.25, 0.1, 32), "drift"),
        (span(-0.24, 0.1, 32), "not seen"),
        (span(-0.3, 0.31, 32), "not seen"),
    ):
        assert preference_verdict(records(**fell, borrowed_chosen=kept))["dispersion"].word == word


@pytest.mark.parametrize(
    ("below", "slope", "word"), [(64, -0.1, "still falling"), (64, 0.1, "yes"), (64, None, "yes"), (36, -0.1, "no")]
)
def test_degradation(below: int, slope: float | None, word: str) -> None:
    found = preference_verdict(records(below=wilson(below, 64).to_json(), chosen_slope=slope))["degradation"]
    assert found.word == word
    assert f"in {below / 64:.0%} of 64 pairs" in found.text


@pytest.mark.parametrize(("per_token", "word"), [(-0.99, "no"), (-1.0, "yes")])
def test_drop(per_token: float, word: str) -> None:
    found = preference_verdict(records(rejected_per_token=per_token, rejected_slope=-0.25))["drop"]
    assert (found.word, found.text) == (
        word,
        f"rejected answers -8.0 nats, {per_token:+.2f} per token, now -0.25 per step",
    )


IMITATION: dict[str, Any] = {
    "chosen": span(5.4, 1.0),
    "rejected": span(5.1, 1.0),
    "accuracy": wilson(36, 64).to_json(),
    "own_accuracy": wilson(61, 64).to_json(),
}


def test_the_block_of_a_run_that_imitates() -> None:
    """Flex-DPO with beta_plus 0.1 and beta_minus 0.03 on real pairs, its answers 48 % shorter."""
    tokens = [{"answer_tokens": [100 + i, 200 + i] * 8, "answer_limit": 256} for i in (0, -72)]
    # 100 to 28 and 200 to 128, eight times: 300 to 156 tokens
    found = preference_verdict(
        [*records(**IMITATION), *tokens],
        objective="flex_dpo",
        held_out={"end": 0.6, "n": 500, "start": 0.5, "own": 0.95, "longer": 0.5},
    )
    assert found.lines() == [
        "Done.",
        "",
        "  learned       not shown   held-out accuracy 0.60 [0.56, 0.64], start 0.50, n 500; own scales 0.95; both "
        "sides rose alike",
        "  imitation     yes         both sides rose alike, imitation, not preference: chosen +5.4, rejected +5.1 nats",
        "  dispersion    not seen    +0.00 nats/token on 64 answers outside the pairs",
        "  length        -48%        150 to 78 tokens [-59%, -40%], n 16, at most 256; chosen answers are 12% longer "
        "than rejected ones",
        "  next          raise objective.beta_minus towards beta_plus, or try objective.name=dpo",
    ]
    facts = json.loads(json.dumps(found.to_json(), allow_nan=False))["findings"]
    assert facts["imitation"]["word"] == "yes"
    assert facts["learned"]["own_accuracy"] == 0.95
    assert facts["length"]["growth"] == pytest.approx(-0.48)
    assert facts["length"]["changed"] is True


@pytest.mark.parametrize(
    ("chosen", "rejected", "word"),
    [
        (span(6.0), span(3.0), "yes"),  # half of the rise is shared
        (span(6.0), span(2.9), "no"),
        (span(3.0), span(6.0), "yes"),
        (span(6.0), span(3.5, 4.0), "no"),  # the rejected one did not rise for sure
        (span(3.5, 4.0), span(6.0), "no"),
        (span(-6.0), span(-6.0), "no"),
    ],
)
def test_imitation(chosen: dict, rejected: dict, word: str) -> None:
    found = preference_verdict(records(chosen=chosen, rejected=rejected))
    assert found["imitation"].word == word
    assert any(line.startswith("  imitation") for line in found.lines()) is (word == "yes")
    assert found["learned"].word == ("not shown" if word == "yes" else "yes")


def test_the_longer_answer_each_time_is_a_number_to_beat() -> None:
    shown = {}
    for longer in (0.5, 0.67, 0.7, 0.3):
        found = preference_verdict(records(accuracy=wilson(50, 64).to_json(), longer=longer))
        shown[longer] = (found["learned"].word, found["learned"].text.partition("n 64")[2])
    # 50 of 64 is 0.78 [0.67, 0.87]; the lower end is 0.666
    assert shown == {
        0.5: ("yes", ""),
        0.67: ("not shown", "; always the longer answer: 0.67"),
        0.7: ("not shown", "; always the longer answer: 0.70"),
        0.3: ("not shown", "; always the shorter answer: 0.70"),
    }
    found = preference_verdict(records(), held_out={"end": 0.6, "n": 597, "start": 0.5, "longer": 0.598})
    assert found["learned"].word == "not shown"
    assert found["next"].text.startswith("length alone does as well: compare lengths in align check")


@pytest.mark.parametrize(("n", "word"), [(29, "too few to say"), (30, "yes")])
def test_few_pairs_say_nothing(n: int, word: str) -> None:
    found = preference_verdict(records(accuracy=wilson(n, n).to_json()))
    assert found["learned"].word == word
    assert preference_verdict(records(), held_out={"end": 1.0, "n": n})["learned"].word == word
    if n == 29:
        assert found["next"].text == "29 held-out pairs are too few to say: hold out 30 or more (data.held_out)"


@pytest.mark.parametrize(
    ("end", "word"),
    [
        ({"chosen": span(0.0, 0.0), "rejected": span(0.0, 0.0)}, "no"),
        ({"chosen": span(0.3), "rejected": span(-0.4)}, "no"),
        ({"chosen": span(0.3), "rejected": span(-0.6)}, "yes"),  # its interval reaches -1.1
        ({"chosen": span(0.3), "rejected": span(-0.4), "rejected_per_token": -0.05}, "yes"),  # short answers
        ({"chosen": span(0.0, 9.0), "rejected": span(0.0, 0.0)}, "yes"),  # some rose and others fell
    ],
)
def test_a_run_that_moved_nothing(end: dict[str, Any], word: str) -> None:
    found = preference_verdict(records(**end))
    assert found["moved"].word == word
    assert any("the model hardly moved" in line for line in found.lines()) is (word == "no")
    assert found["next"].text.startswith("the model hardly moved: raise") is (word == "no")


def test_a_run_that_hardly_moved_earns_no_praise_and_no_blame() -> None:
    """After one step of next to no size all pairs are ordered, and all chosen answers a little lower."""
    end = {"chosen": span(-0.02, 0.01), "rejected": span(-0.03, 0.01), "accuracy": wilson(64, 64).to_json()}
    end |= {"below": wilson(64, 64).to_json(), "chosen_slope": -1e-4}
    found = preference_verdict(records(**end))
    assert (found["suppression"].word, found["suppression"].text) == (
        "no",
        "the model hardly moved: chosen -0.0, rejected -0.0 nats",
    )
    assert found["degradation"].word == "no"
    assert found["learned"].word == "not shown"
    assert found["learned"].text.endswith("start 0.50, n 64; the model hardly moved")
    # at ten times the limit per answer all three are said
    far = end | {"chosen": span(-10.0), "rejected": span(-12.0)}
    words = [preference_verdict(records(**far))[name].word for name in ("suppression", "degradation", "learned")]
    assert words == ["mild", "still falling", "yes"]


def test_an_objective_without_pairs_is_judged_by_its_loss() -> None:
    log = [{"step": 0, "eval_loss": 2.5}, {"step": 5, "loss": 2.0}, {"step": 9, "eval_loss": 2.25}]
    found = preference_verdict(log, compares_pairs=False)
    assert found.lines() == [
        "Done.",
        "",
        "  loss          lower       held-out loss 2.2500, start 2.5000",
        "  next          read some answers: a lower loss does not say that they are better",
    ]
    assert set(found.to_json()["findings"]) == {"loss", "next"}
    worse = preference_verdict([*log, {"step": 12, "eval_loss": 2.5}], compares_pairs=False)
    assert (worse["loss"].word, worse["next"].text[:32]) == ("not lower", "the held-out loss did not fall: ")
    assert preference_verdict(log[1:2], compares_pairs=False)["loss"].text == "no held-out rows"
    late = preference_verdict(log[1:], compares_pairs=False)["loss"]
    assert (late.word, late.text) == (NOT_MEASURED, "held-out loss 2.2500; it was not measured at the start")


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ({"chosen": span(-4.0)}, "look at suppression (mild): align explain suppression"),
        ({"rejected_per_token": -1.5}, "look at drop (yes): align explain drop"),
        (
            {"chosen": span(-4.0), "below": wilson(60, 64).to_json(), "drift": span(0.1, 0.02)},
            "look at suppression (mild), degradation (yes), dispersion (mild): align explain suppression",
        ),
    ],
)
def test_nothing_stands_out_only_where_nothing_does(end: dict[str, Any], says: str) -> None:
    assert preference_verdict(records(**end))["next"].text == says


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
        (IMITATION, {}, "lower the weight of the likelihood term"),
        ({"accuracy": wilson(510, 1000).to_json()}, {}, "train longer, or look at the pairs"),
        (
            {"accuracy": wilson(35, 64).to_json(), "chosen": span(0.1), "rejected": span(-0.4)},
            {},
            "the model hardly moved: raise train.learning_rate",
        ),
        ({"chosen": {"value": None, "low": None, "high": None, "n": 64}}, {}, "the run diverged"),
    ],
)
def test_next(end: dict[str, Any], options: dict[str, Any], advice: str) -> None:
    assert preference_verdict(records(**end), **options)["next"].text.startswith(advice)


@pytest.mark.parametrize(
    ("lengths", "word", "advice"),
    [((100.0, 140.0), "+40%", "answers grew"), ((100.0, 52.0), "-48%", "answers became shorter"),
     ((100.0, 125.0), "+25%", "answers grew"), ((100.0, 76.0), "-24%", "nothing stands out")],
)  # fmt: skip
def test_answers_that_changed_their_length_get_advice(lengths: tuple, word: str, advice: str) -> None:
    for key in ("generated_tokens", "samples/tokens"):
        found = preference_verdict([*records(), *({key: tokens} for tokens in lengths)])
        assert found["length"].word == word
        assert found["next"].text.startswith(advice)


def test_a_length_that_chance_may_have_changed_does_not_stand_out() -> None:
    start = [10, 20, 30, 40, 50, 60, 70, 80]
    for end, changed in (([13, 26, 39, 52, 65, 78, 91, 104], True), ([200, 18, 25, 33, 50, 48, 70, 80], False)):
        log = [*records(), {"answer_tokens": start}, {"answer_tokens": end}]
        facts = preference_verdict(log)["length"].facts
        assert facts["growth"] >= 0.25
        assert facts["changed"] is changed
        assert preference_verdict(log)["next"].text.startswith("answers grew") is changed


def test_answers_that_were_not_generated_are_not_measured() -> None:
    found = preference_verdict(records())["length"]
    assert found.word == NOT_MEASURED
    assert found.text == "no sampled answers; chosen answers are 12% longer than rejected ones"


@pytest.mark.parametrize(
    ("tokens", "text"), [(150.0, "25% shorter than"), (200.5, "of one length"), (300.0, "50% longer")]
)
def test_lengths_of_the_pairs(tokens: float, text: str) -> None:
    assert text in preference_verdict(records(chosen_length=tokens))["length"].text


@pytest.mark.parametrize("log", [[], [{"step": 1, "loss": 0.7}], [{"step": 0, "probe": START}], [{"probe": None}]])
def test_nothing_recorded_is_said_so(log: list[dict[str, Any]]) -> None:
    found = preference_verdict(log)
    assert {finding.word for finding in found.findings} == {NOT_MEASURED, ""}
    assert found["next"].text == "set data.held_out, so that the next run can be judged"
    assert found.lines()[0] == "Done."


def test_one_late_reading_shows_changes_but_no_learning() -> None:
    found = preference_verdict([records(chosen=span(-30.0))[-1]])
    assert (found["suppression"].word, found["learned"].word) == ("yes", NOT_MEASURED)


def test_scores_that_are_not_finite_are_not_measured() -> None:
    lost = {"value": None, "low": None, "high": None, "n": 64}
    found = preference_verdict(records(chosen=lost, rejected=lost, accuracy=lost, below=lost, drift=lost))
    assert {found[name].word for name in ("suppression", "drop", "degradation", "dispersion")} == {NOT_MEASURED}
    assert found["suppression"].text == "the last scores were not finite"


def test_a_single_pair_is_too_few_and_no_divergence() -> None:
    one = torch.tensor([-20.0]), torch.tensor([-20.0]), torch.tensor([10]), torch.tensor([10])
    probe = Displacement(objective=DPO())
    start = probe.read(0, ProbeScores(*one)).to_json()
    end = probe.read(9, ProbeScores(one[0] + 2, one[1] - 5, *one[2:])).to_json()
    found = preference_verdict([{"probe": start}, {"probe": end}])
    assert (found["suppression"].word, found["suppression"].text) == (NOT_MEASURED, "a single pair has no interval")
    assert found["learned"].word == "too few to say"
    assert found["next"].text == "1 held-out pair is too few to say: hold out 30 or more (data.held_out)"


def test_a_stopped_run_says_why() -> None:
    head = preference_verdict(
        records(), run="runs/x", seconds=61, stopped="the loss is not finite at step 40."
    ).headline
    assert head == "Stopped after 1 min: the loss is not finite at step 40.  runs/x"


def test_every_finding_is_explained_and_no_term_hides_an_objective() -> None:
    names = {finding.name for finding in preference_verdict(records()).findings}
    assert names <= set(TERMS | OWN_TEXT)
    assert {"suppression", "degradation", "dispersion", "drop", "learned"} <= set(TERMS)
    assert not set(TERMS | OWN_TEXT) & set(OBJECTIVES)
    for explanation in (TERMS | OWN_TEXT).values():
        assert isinstance(explanation, Explanation)
        assert all(explanation)
        assert "\n" not in explanation.summary


def test_the_page_on_diagnostics_states_every_threshold_and_term() -> None:
    page = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    constants = {name: value for name, value in vars(thresholds).items() if name.isupper() and isinstance(value, float)}
    assert len(constants) >= 9
    for name, value in constants.items():
        assert re.search(rf"`{name}` *\| *{value:g}\b", page), f"docs/diagnostics.md: {name} is {value:g}"
    for term in (
        "learned",
        "moved",
        "imitation",
        "suppression",
        "drop",
        "degradation",
        "dispersion",
        "signal",
        "astray",
        "collapse",
        "length",
        "next",
    ):
        assert f"## {term}" in page.lower()
