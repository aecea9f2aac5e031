"""The verdict on an unlearning run: every word from the numbers that it rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.cli.explain import explain
from align.report.trajectory import draw_trajectories
from align.report.unlearning import number, unlearning_verdict
from align.report.verdict import NOT_MEASURED, Verdict

START = {"utility": 0.6, "utility_retain": 0.9, "forget_quality": 2e-14, "forget_probability": 0.9, "D": 0.6, "n": 120}


def judged(end: dict[str, Any], *more: dict[str, Any], **options: Any) -> Verdict:
    records = [{"step": 0, "evaluation": START}, *more, {"step": 90, "evaluation": {**START, **end}}]
    return unlearning_verdict(records, run="runs/u", **options)


@pytest.mark.parametrize(
    ("end", "forgetting", "utility"),
    [
        ({"forget_quality": 0.051, "utility": 0.54}, "like retain", "kept"),
        ({"forget_quality": 0.05, "utility": 0.539}, "differs", "damaged"),
        ({"forget_quality": 1e-30, "utility": 0.3}, "differs", "damaged"),
        ({"forget_quality": 0.3, "utility": 0.299}, "like retain", "collapsed"),
        ({"forget_quality": 0.3, "utility": 0.0}, "like retain", "collapsed"),
    ],
)
def test_words(end: dict[str, Any], forgetting: str, utility: str) -> None:
    found = judged(end)
    assert (found["forgetting"].word, found["utility"].word) == (forgetting, utility)
    assert found["durability"].word == "not tested"
    assert "align eval relearn runs/u" in found["durability"].text
    # the line on forgetting has the utility in it, whatever it is
    assert f"at utility {number(end['utility'])}" in found["forgetting"].text


def test_a_model_that_was_like_the_retain_model_from_the_start_earns_no_word_of_praise() -> None:
    start = {**START, "forget_quality": 0.051, "utility": 0.0}
    found = unlearning_verdict(
        [{"step": s, "evaluation": {**start, "forget_quality": q}} for s, q in ((0, 0.051), (9, 1.0))]
    )
    assert found["forgetting"].word == "as before"
    assert found["forgetting"].text == (
        "forget quality 1 at utility 0 (D 0.60, n 120), start 0.051: like the retain model before training, too, so "
        "nothing shows that it forgot"
    )
    assert found["next"].text.startswith("begin with a model that knows the rows to forget")
    knew = [{"step": 0, "evaluation": {**start, "forget_quality": 0.05}}, {"step": 9, "evaluation": start}]
    assert unlearning_verdict(knew)["forgetting"].word == "like retain"


def test_without_a_retain_model_nothing_is_claimed() -> None:
    records = [
        {"step": step, "evaluation": {"utility": 0.6, "forget_probability": p}} for step, p in ((0, 0.9), (9, 0.1))
    ]
    found = unlearning_verdict(records)
    assert found["forgetting"].word == "not measured"
    assert "P(forgotten answer) 0.9 to 0.1" in found["forgetting"].text
    assert "evaluate.retain" in found["next"].text
    assert found["best"].text == "needs evaluate.retain"


def test_without_a_suite_the_batches_speak() -> None:
    found = unlearning_verdict([{"step": 10, "p/forget": 0.9}, {"step": 20, "p/forget": 0.125}])
    assert "p went 0.90 to 0.12" in found["forgetting"].text
    assert found["utility"].word == "not measured"
    assert "align eval muse" in found["next"].text


def test_the_best_step_is_called_selected() -> None:
    best = {"step": 45, "forget_quality": 0.5, "utility": 0.58, "path": "runs/u/best"}
    found = judged({"forget_quality": 1e-3}, {"step": 45, "evaluation": START, "best": best})
    assert found["best"].word == "step 45"
    assert "forget quality 0.5 at utility 0.58" in found["best"].text
    assert "selected on the test" in found["best"].text
    assert "eval/trajectory.png" in found["next"].text
    assert judged({})["best"].text == "no evaluated step kept enough utility (evaluate.keep_utility)"


def test_advice_stands_in_the_order_of_harm() -> None:
    ruined = {"utility": 0.1, "forget_quality": 0.4}
    assert "add {name: nll, branch: retain}" in judged(ruined, has_retain_term=False)["next"].text
    assert "raise the weight of the retain term" in judged(ruined)["next"].text
    assert "align eval relearn runs/u" in judged({"forget_quality": 0.4})["next"].text


def test_lines_and_json() -> None:
    found = judged({"forget_quality": 0.13}, seconds=3.0, stopped="step 90, utility < 0.9 * start")
    lines = found.lines()
    assert lines[0] == "Stopped after 3 s: step 90, utility < 0.9 * start.  runs/u"
    assert [line.split()[0] for line in lines[2:]] == ["forgetting", "utility", "best", "durability", "next"]
    assert found.to_json()["findings"]["utility"]["share"] == 1.0


@pytest.mark.parametrize(
    "name", ["forget_quality", "forgetting", "utility", "best", "durability", "leak@k", "alias", "two hops"]
)
def test_every_word_is_explained(name: str) -> None:
    assert explain(name)["kind"] == "term"


def test_picture(tmp_path: Path) -> None:
    ruined = {"utility": 0.0, "forget_quality": 1e-90}
    file = draw_trajectories(tmp_path / "t.png", START, {"utility": 0.62}, {"npo": [START, ruined]}, what="here")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 20_000


def test_a_utility_that_was_nothing_at_the_start_has_not_collapsed() -> None:
    records = [{"step": step, "evaluation": {"utility": 0.0}} for step in (0, 10)]
    found = {finding.name: finding for finding in unlearning_verdict(records).findings}
    assert found["utility"].word == NOT_MEASURED
    assert found["utility"].text == (
        "0.000, start 0.000: the model had none to lose (does its template fit the questions?)"
    )
