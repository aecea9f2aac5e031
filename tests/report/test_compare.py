"""Several runs side by side: what differs, and differences item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_records import DPO, asked, probed, record, span

from align.errors import UserError
from align.report.compare import Row, compare
from align.report.paired import Difference, differences
from align.stats import Interval, bootstrap_mean


def test_only_the_settings_that_differ() -> None:
    other = {
        **DPO,
        "name": "second",
        "output": "runs/elsewhere",
        "seed": 1,
        "objective": {"name": "rpo", "beta": 0.1, "eta": 0.2},
        "train": {"learning_rate": 2e-6, "bf16": True},
        "data": {**DPO["data"], "held_out": None},
    }
    versions = {"versions": {"torch": "2.13.0", "trl": "1.16.0"}, "data": "abcdefgh12", "processes": 2}
    found = compare(
        [
            record(
                "runs/a", lock={"versions": {"torch": "2.12.0", "trl": "1.16.0"}, "data": "abcdefgh34", "processes": 1}
            ),
            record("runs/b", recipe=other, lock=versions),
        ]
    )
    assert found.labels == ("A", "B")
    assert found.settings == (
        Row("seed", ("0", "1")),
        Row("data.held_out.path", ("kept.jsonl", "-")),
        Row("objective.name", ("dpo", "rpo")),
        Row("objective.eta", ("-", "0.2")),
        Row("train.learning_rate", ("1e-06", "2e-06")),
        Row("train.bf16", ("-", "true")),
        Row("processes", ("1", "2")),
        Row("version of torch", ("2.12.0", "2.13.0")),
    )


def test_objectives_in_a_list_keep_their_numbers_and_sections_that_a_run_lacks_are_named_once() -> None:
    both = {**DPO, "objective": [{"name": "dpo", "weight": 1.0}, {"name": "nll", "weight": 0.1, "norm": "token_mean"}]}
    more = {**both, "objective": [both["objective"][0], {"name": "nll", "weight": 0.2, "norm": "token_mean"}]}
    alone = {**DPO, "objective": {"name": "dpo", "weight": 1.0}}
    found = compare([record("a", recipe=both), record("b", recipe=more), record("c", recipe=alone)])
    assert found.settings == (
        Row("objective.1.name", ("nll", "nll", "-")),
        Row("objective.1.weight", ("0.1", "0.2", "-")),
    )


def test_words_and_numbers_side_by_side() -> None:
    findings = {
        "learned": {"word": "yes", "accuracy": span(0.8, 0.1), "start": 0.5, "pairs": "held-out"},
        "next": {"word": ""},
    }
    late = {"learned": {"word": "not shown"}, "suppression": {"word": "mild"}}
    metrics = [{"step": 7, "probe": {"chosen": span(-2, 1)}}]
    found = compare(
        [record("a", findings=findings), record("b", findings=late, metrics=metrics), record("c", metrics=metrics)]
    )
    assert found.words == (Row("learned", ("yes", "not shown", "-")), Row("suppression", ("-", "mild", "-")))
    assert [(name, [f and f.text for f in row]) for name, row in found.numbers] == [
        ("accuracy on held-out pairs", ["0.8 [0.7, 0.9]", None, None]),
        ("change of chosen answers", [None, "-2.0 [-3.0, -1.0]", "-2.0 [-3.0, -1.0]"]),
    ]
    assert found.notes[0] == "C has not ended: its numbers are of step 7 or earlier."
    stopped = record("d", metrics=[{"step": 2, "loss": 1.0}], facts={"stopped": "Stopped at step 2."})
    notes = compare([found.runs[0], stopped]).notes
    assert notes[0] == "B was stopped before its end: its numbers are of step 2 or earlier."


def test_pairs_are_compared_by_their_digest_in_whatever_order() -> None:
    """Differences by hand: of the shared rows r1, r2, r3 the second run's chosen change is larger by 1, 2 and 6."""
    first = record(probe=probed([0, 0, 0, 5], [-1, -1, -1, -1], ["r1", "r2", "r3", "only a"]))
    second = record("runs/b", probe=probed([6, 9, 2, 1], [-1, 9, 3, 9], ["r3", "only b", "r2", "r1"], start=-20.0))
    found, note = differences(first, second)
    assert note == ""
    by_name = {one.what: one for one in found}
    chosen = by_name["change of chosen answers"]
    assert (chosen.interval.value, chosen.interval.n, chosen.of, chosen.unit) == (3.0, 3, 5, "nats/answer")
    assert chosen.interval == bootstrap_mean([1.0, 2.0, 6.0], 0)
    rejected = by_name["change of rejected answers"]  # r1: 9 + 1, r2: 3 + 1, r3: -1 + 1
    assert rejected.interval.value == pytest.approx(14 / 3)
    assert by_name["change of the margin"].interval.value == pytest.approx(3 - 14 / 3)
    # ordered right: the first run all three; the second r3 alone (6 > -1), not r1 (1 < 9) nor r2 (2 < 3)
    assert by_name["share of pairs ordered right"].interval.value == pytest.approx(-2 / 3)
    assert {one.word for one in found} == {"too few to say"}


def test_pairing_shows_what_separate_intervals_hide() -> None:
    """Pairs differ by 30 nats among themselves and the runs by 1: the paired interval leaves out 0."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 30, 64)
    rows = [f"r{i}" for i in range(64)]
    first = record(probe=probed(hard.tolist(), [0] * 64, rows))
    second = record("b", probe=probed((hard + 1 + rng.normal(0, 0.5, 64)).tolist(), [0] * 64, rows))
    apart = [bootstrap_mean(hard, 0), bootstrap_mean(hard + 1, 0)]
    assert apart[0].high > apart[1].low
    chosen = differences(first, second)[0][0]
    assert 0.8 < chosen.interval.low < 1 < chosen.interval.high < 1.2
    assert chosen.word == "differs"
    same = differences(first, record("b", probe=probed(hard.tolist(), [0] * 64, rows)))[0][0]
    assert (same.interval, same.word) == (Interval(0.0, 0.0, 0.0, 64), "not shown")


def test_a_tie_counts_half_and_what_is_not_finite_is_counted() -> None:
    rows = ["r1", "r2", "r3"]
    first = record(probe=probed([1, 1, 1], [1, 0, 0], rows))
    broken: dict[str, Any] = probed([0, 1, 1], [1, 0, 0], rows)
    broken["end"]["chosen"][2] = None
    found, note = differences(first, record("b", probe=broken))
    assert note == "1 item without a finite value left out"
    ordered = next(one for one in found if one.what == "share of pairs ordered right")
    assert (ordered.interval.value, ordered.interval.n) == (-0.25, 2)  # from one half to 0, and from 1 to 1


def test_why_nothing_is_paired() -> None:
    full = probed([1, 1], [0, 0], ["r1", "r2"])
    cases = [
        (None, "b records no scores pair by pair (no probe, an end that was not reached, or an earlier version)"),
        (
            {**full, "end": None},
            "b records no scores pair by pair (no probe, an end that was not reached, or an earlier version)",
        ),
        ({**full, "rows": ["r1"]}, "b has a damaged probe.json: its scores and its rows differ in number"),
        ({**full, "rows": ["x1", "x2"]}, "no two of their items are the same"),
    ]
    for probe, why in cases:
        assert differences(record("a", probe=full), record("b", probe=probe)) == ([], why)
    start = [{"step": 0, "probe": {"chosen": 0}}, {"step": 46, "loss": 0.2}]
    unread = record("b", metrics=start, probe=full)
    assert differences(record("a", probe=full), unread) == ([], "b has not read its pairs since the start")
    read = record("b", metrics=[*start, {"step": 60, "probe": {"chosen": 1}}], probe=full)
    assert len(differences(record("a", probe=full), read)[0]) == 4
    why = "runs of this kind record nothing item by item"
    assert differences(record(kind="rounds"), record("b", kind="rounds")) == ([], why)
    found = compare([record("a", probe=full), record("b")])
    assert found.notes[-1].startswith("B - A: b records no scores pair by pair")


def test_unlearning_runs_are_paired_by_what_was_asked() -> None:
    first = record(kind="unlearning", evaluations={"TOFU_EVAL": asked([0.5, 0.7, 0.9])})
    second = record("b", kind="unlearning", evaluations={"TOFU_EVAL": asked([0.1, 0.2, 0.3])})
    found, note = differences(first, second)
    assert note == ""
    assert [(one.what, one.interval.n, one.unit) for one in found] == [
        ("probability of forgotten answers", 3, ""),
        ("ROUGE of forgotten answers", 3, ""),
    ]
    assert [one.interval.value for one in found] == [pytest.approx(-0.5), pytest.approx(-0.25)]
    elsewhere = record("b", kind="unlearning", evaluations={"TOFU_EVAL": asked([0.1, 0.2, 0.3], "where?")})
    assert differences(first, elsewhere) == ([], "no two of their items are the same")
    without = record("b", kind="unlearning")
    assert differences(first, without)[1] == "b has no evaluation item by item (eval/TOFU_EVAL.json)"


def test_many_intervals_are_named_and_each_run_goes_against_the_first() -> None:
    rows = [f"r{i}" for i in range(40)]
    runs = [
        record(f"r{k}", recipe={**DPO, "seed": k}, findings={}, probe=probed([k] * 40, [0] * 40, rows))
        for k in range(3)
    ]
    found = compare(runs)
    assert [(one.label, one.differences[0].interval.value) for one in found.paired] == [("B", 1.0), ("C", 2.0)]
    assert found.notes == (
        "8 paired intervals of 95 %, none adjusted for their number: of so many, 0.4 leave out 0 by chance alone where "
        "no run differs.",
        "Each run is one seed: the intervals are about items, and know nothing of other seeds.",
        "The runs have different seeds, so their probes drew different pairs; only shared ones are paired.",
    )
    data = found.to_json()
    assert data["runs"] == {"A": "r0", "B": "r1", "C": "r2"}
    assert data["settings"] == {"seed": {"A": "0", "B": "1", "C": "2"}}
    first = data["paired"]["C"]["differences"][0]
    assert first == {
        "what": "change of chosen answers",
        "value": 2.0,
        "low": 2.0,
        "high": 2.0,
        "n": 40,
        "of": 40,
        "unit": "nats/answer",
        "word": "differs",
    }


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        (Interval(1, 0.5, 2, 30), "differs"),
        (Interval(-1, -2, -0.5, 30), "differs"),
        (Interval(1, 0.0, 2, 30), "not shown"),
        (Interval(1, 0.5, 2, 29), "too few to say"),
    ],
)
def test_the_word_of_a_difference(interval: Interval, word: str) -> None:
    assert Difference("margin", interval, 64).word == word


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for runs, said in (
        ([], "A comparison needs at least two runs, and none was named."),
        ([record("a")], "A comparison needs at least two runs, and only a was named."),
        ([record("a"), record("a")], "a is named twice: a comparison with itself shows nothing. Name another run."),
        (
            [record(str(tmp_path / "a")), record(str(tmp_path / "link"))],
            f"{tmp_path}/a and {tmp_path}/link are one run: a comparison with itself shows nothing. Name another run.",
        ),
        (
            [record("a"), record("b", kind="unlearning")],
            "a (preference) and b (unlearning) cannot be compared: runs of these kinds are measured by different "
            "numbers. Compare runs of one kind.",
        ),
        ([record(f"r{i}") for i in range(27)], "At most 26 runs can be compared at a time, and 27 were named."),
    ):
        with pytest.raises(UserError) as error:
            compare(runs)
        assert str(error.value) == said
