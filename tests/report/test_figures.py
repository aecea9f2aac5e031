"""The numbers at the end of a run of every kind, and the sentences on what they do not show."""

from __future__ import annotations

import pytest
from run_records import DPO, asked, record, span

from align.report.figures import Figure, figures, shown, spanned
from align.report.limits import limits
from align.stats import Interval, bootstrap_mean


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.71, 0.67, 0.75, "0.71 [0.67, 0.75]"),
        (-12.34, -14.9, -10.1, "-12.3 [-14.9, -10.1]"),
        (0.0124, 0.0103, 0.0151, "0.012 [0.010, 0.015]"),
        (-0.021, -0.0419, -0.0039, "-0.021 [-0.042, -0.004]"),  # the upper end is not 0 and must not look so
        (0.0, 0.0, 0.0, "0.00 [0.00, 0.00]"),
        (-0.0001, -0.3, 0.3, "0.0 [-0.3, 0.3]"),
        (1.0, float("-inf"), float("inf"), "1.00 [-inf, inf]"),
    ],
)
def test_an_interval_has_the_decimals_that_it_needs(value: float, low: float, high: float, text: str) -> None:
    assert spanned(Interval(value, low, high, 9)) == text


def test_a_number_alone() -> None:
    values = (0.389, 0.00105, 3.005e-8, -12.345, 12345.6, 0.0)
    assert [shown(value) for value in values] == ["0.389", "0.00105", "3e-8", "-12.3", "12,346", "0"]


def test_a_preference_run_is_read_at_its_last_reading() -> None:
    metrics = [
        {"step": 0, "probe": {"chosen": span(0), "rejected": span(0)}, "eval_loss": 0.7},
        {"step": 0, "own_text": {"entropy": span(2.0, 0.1), "likeness": 0.1, "tokens": span(20)}},
        {"step": 5, "probe": {"chosen": span(-3, 1), "rejected": span(-9, 1), "drift": span(-0.5, 0.1)}},
        {"step": 9, "eval_loss": 0.4, "own_text": {"entropy": span(1.5, 0.1), "likeness": 0.3, "tokens": span(30)}},
    ]
    findings = {"learned": {"word": "yes", "accuracy": span(0.8, 0.05, 200), "start": 0.5, "pairs": "held-out"}}
    found = {f.name: (f.text, f.start, f.unit) for f in figures(record(metrics=metrics, findings=findings))}
    assert found == {
        "accuracy on held-out pairs": ("0.80 [0.75, 0.85]", 0.5, ""),
        "change of chosen answers": ("-3.0 [-4.0, -2.0]", None, "nats/answer"),
        "change of rejected answers": ("-9.0 [-10.0, -8.0]", None, "nats/answer"),
        "drift outside the pairs": ("-0.5 [-0.6, -0.4]", None, "nats/token"),
        "entropy of own samples": ("1.5 [1.4, 1.6]", 2.0, "nats/token"),
        "likeness of own samples": ("0.3", 0.1, ""),
        "length of own samples": ("30.00 [30.00, 30.00]", 20.0, "tokens"),
        "loss on held-out rows": ("0.4", 0.7, ""),
    }


def test_before_its_end_a_run_has_the_accuracy_of_its_probe() -> None:
    found = figures(record(metrics=[{"step": 5, "probe": {"accuracy": span(0.6, 0.1)}}]))
    assert found == [Figure("accuracy on the probe's pairs", 0.6, Interval(0.6, 0.5, 0.7, 64))]


def test_what_was_read_at_the_start_alone_is_no_number_of_the_end() -> None:
    reading = {"chosen": span(0), "margin": span(0), "accuracy": span(0.5, 0.1)}
    start = {"step": 0, "probe": reading, "own_text": {"entropy": span(2.0), "tokens": span(20)}, "eval_loss": 0.7}
    assert figures(record(metrics=[start, {"step": 46, "loss": 0.2}])) == []
    later = {"step": 46, "probe": {"chosen": span(-3)}}
    assert [figure.value for figure in figures(record(metrics=[start, later]))] == [-3]
    suite = [{"step": 0, "evaluation": {"utility": 0.6}}, {"step": 9, "loss": 1.0}]
    assert figures(record(kind="unlearning", metrics=suite)) == []


def test_an_unlearning_run_has_intervals_where_its_items_are_those_of_the_last_reading() -> None:
    metrics = [
        {"step": 0, "evaluation": {"forget_quality": 1e-9, "forget_probability": 0.9}},
        {"step": 9, "evaluation": {"forget_quality": 0.2, "forget_probability": 0.25, "forget_rouge": 0.9}},
    ]
    log = asked([0.1, 0.2, 0.3, 0.4])  # of mean 0.25, and ROUGE of mean 0.125
    found = {f.name: f for f in figures(record(kind="unlearning", metrics=metrics, evaluations={"TOFU_EVAL": log}))}
    assert [(f.value, f.start) for f in found.values()] == [(0.2, 1e-9), (0.25, 0.9), (0.9, None)]
    assert found["probability of forgotten answers"].interval == bootstrap_mean([0.1, 0.2, 0.3, 0.4], 0)
    assert found["ROUGE of forgotten answers"].interval is None  # the log is of another step
    assert found["forget quality (p-value)"].interval is None


def test_rounds_are_read_at_the_last_round() -> None:
    rounds = [{"round": 1, "score": 0.2, "tokens": 10.0}, {"round": 2, "score": 0.6, "tokens": 12.0, "accuracy": None}]
    found = {f.name: (f.value, f.start) for f in figures(record(kind="rounds", metrics=rounds))}
    assert found == {"judge's mean score, last round": (0.6, 0.2), "length of samples, last round": (12.0, 10.0)}


def test_a_reward_model_and_survivors_are_read_from_their_verdicts() -> None:
    ranks = {"word": "yes", "accuracy": span(0.9, 0.02, 300), "start": 0.4, "null": 0.6}
    reward = record(kind="reward", findings={"ranks": ranks, "confidence": {"confidence": 0.8, "error": 0.1}})
    assert {f.name: (f.value, f.start) for f in figures(reward)} == {
        "accuracy on held-out pairs": (0.9, 0.4),
        "accuracy of length alone": (0.6, None),
        "confidence on held-out pairs": (0.8, None),
        "expected calibration error": (0.1, None),
    }
    facts = {"reward": {"start": 0.1, "end": 0.5}, "alike": {"start": 0.2, "end": 0.3}, "distance": {"end": 0.05}}
    survivors = record(kind="survivors", findings=facts)
    assert [(f.value, f.start) for f in figures(survivors)] == [(0.5, 0.1), (0.3, 0.2), (0.05, None)]


def test_limits_of_a_run_that_measured_what_it_could() -> None:
    metrics = [{"step": 9, "probe": {"n": 64, "chosen": span(-3, 1)}, "own_text": {"entropy": span(1.5, 0.1)}}]
    findings = {"learned": {"word": "yes", "accuracy": span(0.8, 0.05, 200), "pairs": "held-out"}}
    assert limits(record(metrics=metrics, findings=findings)) == [
        "One seed (0): another one may come out otherwise.",
        "Changes of log-probs are measured on 64 of the held-out pairs; other prompts may fare otherwise.",
        "Nobody judged the answers: there is no win rate and no benchmark here.",
    ]


def test_limits_of_a_run_that_did_not() -> None:
    recipe = {**DPO, "data": {"train": [{"path": "rows.jsonl"}], "held_out": None}, "seed": 3}
    environment = {"git": {"commit": "abc", "dirty": True}}
    skipped = {"probe": 1200, "own_text": 3, "entanglement": 0, "report": 9}
    cost = {"probes": {"probes": {name: {"readings": 3, "skipped": count} for name, count in skipped.items()}}}
    findings = {"learned": {"word": "not measured", "text": "no held-out pairs"}}
    found = record(
        recipe=recipe,
        findings=findings,
        metrics=[{"step": 9, "eval_loss": 0.4}],
        facts={"environment": environment, "cost": cost},
        lock={"samples": "not exactly: batches follow the memory that is free"},
        notes=["metrics.jsonl: 1 line is cut off."],
    )
    assert limits(found) == [
        "One seed (3): another one may come out otherwise.",
        "No rows were held out (data.held_out): nothing here shows what was learned beyond the training rows.",
        "Nobody judged the answers: there is no win rate and no benchmark here.",
        "The policy's own samples were not read, so likelihood that went to text of its own is not seen.",
        "learned was not measured: no held-out pairs.",
        "No interval is known for: loss on held-out rows.",
        "Readings were left out to stay within the probes' budget: 1,200 of probe, 3 of own text.",
        "The recipe's folder held changes that no commit holds.",
        "Another run draws the same samples not exactly: batches follow the memory that is free.",
        "metrics.jsonl: 1 line is cut off.",
    ]


def test_limits_of_few_pairs_and_of_a_run_without_an_end() -> None:
    few = record(findings={"learned": {"word": "too few to say", "accuracy": span(0.8, 0.2, 12), "pairs": "held-out"}})
    assert "12 held-out pairs are too few to say anything about accuracy." in limits(few)
    running = record(metrics=[{"step": 40, "loss": 0.5}])
    assert limits(running)[0] == (
        "The run has not ended: all numbers are of step 40 or earlier, and there is no verdict."
    )
    stopped = record(facts={"stopped": "Stopped at step 5: the loss is not finite."})
    assert limits(stopped)[0] == (
        "The run was stopped before its end, so there is no verdict: Stopped at step 5: the loss is not finite."
    )


def test_limits_of_unlearning_and_of_judged_samples() -> None:
    findings = {
        "durability": {"word": "not tested", "text": "relearning: align eval relearn runs/a"},
        "best": {"word": "step 5", "path": "runs/a/best"},
    }
    recipe = {"seed": 0, "evaluate": {"suite": "tofu", "retain": None}, "data": {"forget": [{}]}}
    assert limits(record(kind="unlearning", recipe=recipe, findings=findings)) == [
        "One seed (0): another one may come out otherwise.",
        "Durability was not tested: relearning: align eval relearn runs/a",
        "There was no retain model (evaluate.retain) to compare with, so forget quality is unknown.",
        "The best step was selected on the test questions themselves: its numbers are no result.",
    ]
    judged = "The judge that chose the training samples is the only one that was asked: another may disagree."
    assert judged in limits(record(kind="rounds", findings={}))
    asked_nothing = "What its scores depend on (order, wording, length) was not asked: align probe tells."
    assert asked_nothing in limits(record(kind="reward", findings={}))
