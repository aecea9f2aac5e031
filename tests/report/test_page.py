"""What a report says and draws, section by section; how it looks is in ``test_page_in_chromium.py``."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import hostile, preference_run, reward_run, rounds_run, span, survivors_run, unlearning_run, write_run
from run_records import DPO, record

from align.errors import UserError
from align.report.limits import limits
from align.report.page.about import cost, cost_facts, data, reproduce
from align.report.page.blocks import Block, Charts, Code, Document, Facts, Points, Section, Table, Text, Words
from align.report.page.comparison import comparison
from align.report.page.document import about, document
from align.report.page.entanglement import entanglement, own_ratio
from align.report.page.evaluation import evaluation
from align.report.page.render import render
from align.report.page.reward import reward
from align.report.page.summary import chosen, first_words, picture, plain
from align.report.page.unlearning import front
from align.report.page.untrusted import shown
from align.report.page.verdict import tone, verdict, words
from align.report.record import RunRecord
from align.runs.record import load_run
from align.runs.report import write_report


def titles(page: Document) -> list[str]:
    return [section.title for section in page.sections]


def only(section: Section, kind: type[Block]) -> Any:
    """The one block of a kind."""
    (found,) = [block for block in section.blocks if isinstance(block, kind)]
    return found


def charts(section: Section) -> list[str]:
    return [chart.title for block in section.blocks if isinstance(block, Charts) for chart in block.charts]


ENDS = ["Data", "Cost", "Reproduce", "Limits"]
SECTIONS = {
    "preference": [
        "Verdict",
        "Curves",
        "Drop, degradation, dispersion",
        "Gradient entanglement",
        "Evaluation",
        "Fixed prompts, before and after",
        *ENDS,
    ],
    "unlearning": ["Verdict", "Curves", "Forgetting and its cost", "Evaluation", *ENDS],
    "reward": ["Verdict", "Curves", "Evaluation", "Reward model", *ENDS],
    "survivors": ["Verdict", "Curves", "Evaluation", *ENDS],
    "rounds": ["Verdict", "Rounds", "Curves", "Evaluation", *ENDS],
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_kind_of_run_has_the_sections_that_make_sense_for_it(tmp_path: Path, kind: str) -> None:
    makers = {"preference": preference_run, "unlearning": unlearning_run, "reward": reward_run}
    makers |= {"survivors": survivors_run, "rounds": rounds_run}
    assert titles(document(load_run(makers[kind](tmp_path / "run")))) == SECTIONS[kind]


def test_a_run_that_compares_no_pairs_has_no_sections_on_pairs() -> None:
    page = document(record(metrics=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]))
    assert titles(page) == ["Verdict", "Curves", "Evaluation", "Fixed prompts, before and after", *ENDS]
    assert charts(page.sections[1]) == ["Loss"]
    assert page.sections[1].blocks[-1] == Text("Not measured: length, gradient norm.", quiet=True)


def test_what_was_not_measured_is_a_sentence() -> None:
    page = document(record(metrics=[{"step": 1, "loss": 2.0, "rewards/margins": 0.1}]))
    parts = {section.title: section for section in page.sections}
    said = {title: [b.text for b in parts[title].blocks if isinstance(b, Text) and b.quiet] for title in parts}
    assert said["Curves"] == [
        "Not measured: accuracy, chosen and rejected, drift on unseen answers, reverse KL, entropy, text nobody wrote, "
        "likeness, length, gradient norm."
    ]
    assert said["Drop, degradation, dispersion"] == ["Not measured: drop, degradation, dispersion, remaining signal."]
    assert said["Gradient entanglement"] == ["Gradient products of pairs were not measured."]
    assert said["Fixed prompts, before and after"] == ["No fixed prompts were answered."]
    assert said["Data"] == ["Nothing was recorded about the rows."]
    assert said["Cost"] == ["Time and memory were not recorded."]
    assert parts["Verdict"].blocks == [
        Text("The run has not ended: all numbers are of step 1 or earlier, and there is no verdict.")
    ]
    assert front(record(kind="unlearning")).blocks == [
        Text(
            "No test suite was run (evaluate: {suite: tofu}), so it is not known what was forgotten and what it cost.",
            quiet=True,
        )
    ]


ODD: list[Any] = [float("nan"), float("inf"), "text", 10**400, -5, [], [1, "a"], {}, None, True]
ODD += [{"value": "x", "low": 0, "high": 2, "n": 9}, {"value": None, "low": None, "high": None, "n": 0}]


@pytest.mark.parametrize("kind", SECTIONS)
def test_whatever_stands_in_the_place_of_a_number_there_is_a_page(tmp_path: Path, kind: str) -> None:
    makers = {"preference": preference_run, "unlearning": unlearning_run, "reward": reward_run}
    makers |= {"survivors": survivors_run, "rounds": rounds_run}
    run = load_run(makers[kind](tmp_path / "run"))
    number = "round" if kind == "rounds" else "step"
    keys = {key for one in run.metrics for key in one if key != number}
    inner = {(key, name) for one in run.metrics for key in keys if isinstance(one.get(key), dict) for name in one[key]}
    for odd in ODD:
        for key in keys:
            document(replace(run, metrics=[{**one, key: odd} for one in run.metrics]))
        for key, name in inner:
            document(replace(run, metrics=[{**one, key: {**one.get(key, {}), name: odd}} for one in run.metrics]))


def test_a_time_that_is_no_number_is_not_shown() -> None:
    found = {"seconds": float("nan"), "peak_memory_bytes": "much", "tokens": 5}
    assert cost_facts(record(facts={"cost": found})) == {"tokens": "5"}


def test_the_line_under_the_title() -> None:
    recipe = {**DPO, "objective": [{"name": "npo", "weight": 1.0}, {"name": "nll", "weight": 0.25}]}
    run = record(kind="unlearning", recipe=recipe, metrics=[{"step": 1200}], findings={})
    assert about(run) == ["unlearning run", "npo + 0.25 nll", "some/model", "1,200 steps"]
    assert about(record(metrics=[{"step": 3}])) == ["preference run", "dpo", "some/model", "3 steps so far"]


# --- the verdict -----------------------------------------------------------------------------------------------------


def test_a_run_that_a_guard_stopped_says_why_first() -> None:
    run = record(metrics=[{"step": 5, "loss": 9.0}], facts={"stopped": "Stopped at step 5: the loss is not finite."})
    assert verdict(run).blocks == [
        Text("The run was stopped before its end, so there is no verdict: Stopped at step 5: the loss is not finite.")
    ]


def test_the_verdict_shows_first_what_the_terminal_shows() -> None:
    findings = {"learned": {"word": "yes", "text": "a"}, "drop": {"word": "yes", "text": "b"}, "next": {"text": "c"}}
    run = record(findings=findings)
    assert run.verdict is not None
    blocks = verdict(RunRecord(**{**vars(run), "verdict": {**run.verdict, "shown": ["learned", "next"]}})).blocks
    first, said, second = blocks
    assert isinstance(first, Words)
    assert isinstance(second, Words)
    assert [(w.name, w.word, w.text, w.tone) for w in first.words] == [
        ("learned", "yes", "a", "good"),
        ("next", "", "c", "plain"),
    ]
    assert said == Text("Also measured:", quiet=True)
    assert [(w.name, w.tone) for w in second.words] == [("drop", "look")]


@pytest.mark.parametrize(
    ("name", "found", "utility", "expected"),
    [
        ("learned", {"word": "yes"}, "", "good"),
        ("learned", {"word": "worse"}, "", "bad"),
        ("suppression", {"word": "no"}, "", "plain"),  # a run that never moved gets it, too
        ("utility", {"word": "kept"}, "kept", "plain"),  # likewise
        ("overfit", {"word": "no"}, "", "plain"),
        ("forgetting", {"word": "like retain"}, "kept", "good"),
        ("forgetting", {"word": "like retain"}, "collapsed", "plain"),  # ruin passes through high forget quality
        ("suppression", {"word": "yes"}, "", "bad"),
        ("suppression", {"word": "mild"}, "", "look"),
        ("length", {"word": "+30%", "changed": True}, "", "look"),
        ("length", {"word": "+30%", "changed": False}, "", "plain"),
        ("learned", {"word": "not measured"}, "", "plain"),
        ("a new one", {"word": "yes"}, "", "plain"),
    ],
)
def test_praise_is_only_for_what_a_worthless_run_does_not_reach(
    name: str, found: dict[str, Any], utility: str, expected: str
) -> None:
    assert tone(name, found, utility) == expected


def test_nothing_is_praised_beside_a_finding_that_is_bad() -> None:
    findings = {"learned": {"word": "yes", "text": "accuracy 0.97"}, "astray": {"word": "no", "text": ""}}
    assert [word.tone for word in words(findings, ["learned", "astray"])] == ["good", "plain"]
    findings["astray"]["word"] = "yes"
    assert [word.tone for word in words(findings, ["learned", "astray"])] == ["plain", "bad"]
    assert [(word.word, word.tone) for word in words(findings, ["learned"])] == [("yes", "plain")]


# --- sections of one kind --------------------------------------------------------------------------------------------


def entangled() -> dict[str, Any]:
    reading = {"of": "LoRA weights", "n": 8, "cosine": span(0.5, 0.1, 8), "low": 0.5, "high": 2.0, "best": 0.8}
    return {
        **reading,
        "share_at_best": 0.75,
        "cases": {"ideal": 6, "both_up": 0, "both_down": 2, "reversed": 0, "still": 0},
        "adam": {"cases": {"ideal": 7, "both_up": 0, "both_down": 1, "reversed": 0, "still": 0}},
        "head": {"same_case": 7},
    }


def test_entanglement_says_what_it_can_claim() -> None:
    run = record(metrics=[{"step": 5, "entanglement": entangled()}])
    section = entanglement(run)
    assert charts(section) == ["Cases", "Cosine", "Feasible interval"]
    cases = only(section, Charts).charts[0]
    assert [(key.label, key.value) for key in cases.legend] == [
        ("chosen up, rejected down", "0.75"),
        ("both up", "0"),
        ("both down", "0.25"),
    ]
    assert section.blocks[0] == Text(
        "Gradients (LoRA weights) of 8 held-out pairs. At the end a ratio of 0.8 would serve 75% of them. "
        "The head alone, without a backward pass, comes to the same case in 7 of them."
    )
    assert section.blocks[-1] == Text(
        "The cases are exact to first order for plain SGD on the pair alone. adamw_torch rescales gradients (with its "
        "scales of that step: chosen up, rejected down in 7, both down in 1 of 8 pairs) and adds earlier ones, so here "
        "they are a hint: what happened is in the curves above."
    )
    sgd = record(recipe={**DPO, "train": {"optim": "sgd"}}, metrics=run.metrics)
    assert entanglement(sgd).blocks[-1] == Text(
        "The run trained with SGD: of a step on the pair alone the cases hold to first order of the learning rate."
    )


def test_entanglement_of_no_pair_has_no_empty_chart() -> None:
    run = record(metrics=[{"step": 5, "entanglement": {"of": "last block", "n": 0, "left_out": 8}}])
    section = entanglement(run)
    assert charts(section) == []
    assert section.blocks[0] == Text("Gradients (last block) of 0 held-out pairs.")


@pytest.mark.parametrize(
    ("objective", "ratio"),
    [
        ({"name": "dpo", "beta": 0.1}, 1.0),
        ({"name": "flex_dpo", "beta_plus": 0.1, "beta_minus": 0.08}, 0.8),
        ([{"name": "flex_dpo", "beta_plus": 0.1, "beta_minus": "auto"}], None),
        ({"name": "nll"}, None),
        (None, None),
    ],
)
def test_the_ratio_of_betas_that_is_drawn(objective: Any, ratio: float | None) -> None:
    assert own_ratio(record(recipe={"objective": objective})) == (None if ratio is None else pytest.approx(ratio))


def test_the_front_of_an_unlearning_run(tmp_path: Path) -> None:
    run = load_run(unlearning_run(tmp_path / "run"))
    section = front(run)
    (chart,) = only(section, Charts).charts
    assert (
        chart.says
        == "Forget quality against utility. run: from 1e-12 at utility 0.6 to 0.316 at utility 0.4, step 40 was kept."
    )
    assert "not recorded" not in chart.about
    table = only(section, Table)
    assert table.header[:4] == ["step", "forget quality", "D", "n"]
    assert table.rows[-1] == ["60", "0.316", "0.15", "120", "0.4", "0.5", "0.07", "0.08"]
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    chart.draw(axes)
    assert [text.get_text() for text in axes.texts if "model" in text.get_text()] == ["full model", "retain model"]
    rings = [line for line in axes.lines if line.get_marker() == "o" and line.get_markersize() == 14]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [
        (pytest.approx(0.6 - 0.2 * 2 / 3), pytest.approx(10 ** (-12 + 11.5 * 2 / 3)))
    ]


def test_forgetting_without_a_retain_model_draws_no_front() -> None:
    metrics = [{"step": step, "evaluation": {"utility": 0.5, "forget_probability": 0.9}} for step in (0, 9)]
    section = front(record(kind="unlearning", metrics=metrics))
    assert charts(section) == []
    assert section.blocks[0] == Text(
        "Forget quality was not measured: it needs evaluate.retain, a model that never saw the forgotten rows.",
        quiet=True,
    )
    assert only(section, Table).header == ["step", "utility", "P(forgotten answer)"]


def test_a_reward_model_stands_beside_chance_and_rules_that_do_not_read(tmp_path: Path) -> None:
    section = reward(load_run(reward_run(tmp_path / "run")))
    assert only(section, Table).rows == [
        ("this model", "0.8", "0.72 to 0.862", "120"),
        ("chance", "0.5", "-", "-"),
        ("before training", "0.5", "-", "-"),
        ("always the longer answer", "0.45", "-", "-"),
        ("always the shorter answer", "0.55", "-", "-"),
    ]
    (chart,) = only(section, Charts).charts
    assert chart.says == (
        "Calibration. confidence 0.55: accuracy 0.5, n 20; confidence 0.75: accuracy 0.8, n 40; "
        "confidence 0.97: accuracy 0.9, n 60."
    )
    assert only(section, Points).items == ["It reads plain."]
    unasked = "What its scores depend on (order, wording, length) was not asked: align probe tells."
    assert unasked in limits(record(kind="reward", findings={}))
    assert unasked not in limits(load_run(tmp_path / "run"))


def test_probes_that_were_not_asked_are_named_with_their_commands() -> None:
    run = record("runs/rm", "reward", findings={})
    assert [block.text for block in reward(run).blocks if isinstance(block, Text)] == [
        "Accuracy on held-out pairs was not measured.",
        "The calibration of its confidence was not measured.",
        "What its scores depend on was not asked: align probe stability runs/rm --pairs FILE --out "
        "runs/rm/eval/stability.json and align probe consistency runs/rm --from FILE --out "
        "runs/rm/eval/consistency.json.",
    ]


def test_evaluation_has_intervals_n_and_change(tmp_path: Path) -> None:
    learned = {"word": "yes", "accuracy": span(0.7, 0.05, 200), "start": 0.5, "pairs": "held-out"}
    run = record(metrics=[{"step": 0, "eval_loss": 0.7}, {"step": 9, "eval_loss": 0.6}], findings={"learned": learned})
    table = only(evaluation(run), Table)
    assert table.header == ("", "value", "95 % interval", "n", "start", "change")
    assert table.rows == [
        ("accuracy on held-out pairs", "0.7", "0.65 to 0.75", "200", "0.5", "+0.2"),
        ("loss on held-out rows", "0.6", "-", "-", "0.7", "-0.1"),
    ]
    section = evaluation(load_run(unlearning_run(tmp_path / "run")))
    suite, attacks = [block for block in section.blocks if isinstance(block, Table)][1:]
    assert suite.title == "All metrics of the test suite at step 60"
    assert suite.rows[0] == ("metric_of_the_suite_0", "0.4", "0.4 to 0.6", "40", "0.9", "-0.5")
    assert attacks.rows == [("8 bits", "held", "forget_probability 0.01 [0, 0.02]", "120")]
    assert only(section, Points).items == ["Not tested: plain"]


def test_what_was_attacked_after_the_run_is_no_longer_called_untested(tmp_path: Path) -> None:
    page = document(load_run(unlearning_run(tmp_path / "run")))
    (durability,) = [word for word in only(page.sections[0], Words).words if word.name == "durability"]
    assert (durability.word, durability.tone) == ("held", "plain")  # a model that forgot nothing holds, too
    assert durability.text == "relearning, rounded weights, other questions, many samples: see Evaluation"
    assert not any("Durability" in text for text in only(page.sections[-1], Points).items)


def test_data_cost_and_how_to_repeat(tmp_path: Path) -> None:
    run = load_run(preference_run(tmp_path / "run"))
    assert only(data(run), Table).rows == [
        ("train: chosen", "240", "10.2", "9", "20", "31"),
        ("train: rejected", "240", "10.2", "9", "20", "31"),
    ]
    assert only(data(run), Points).items == ["240 pairs, 3 of them left out: plain", "Chosen answers are 12 % longer."]
    assert only(data(run), Facts).facts == {"max length": "128"}
    assert only(cost(run), Facts).facts == {"time": "13 min", "peak memory": "1.50 GiB", "tokens": "1,254,000"}
    probes = only(cost(run), Table)
    assert (probes.title, probes.rows) == ("Probes: 4.3% of the training time", [("probe", "13", "2", "4.25")])
    command, recipe = (block for block in reproduce(run).blocks if isinstance(block, Code))
    assert command.text == "align train my.yaml output=plain"
    assert "beta: 0.1" in recipe.text
    assert only(reproduce(run), Facts).facts["versions"] == "torch 2.13.0"
    none = {"share": 0.0, "probes": {}}
    assert cost(record(facts={"cost": {"seconds": 60.0, "probes": none}})).blocks == [Facts({"time": "1 min"})]


# --- several runs ----------------------------------------------------------------------------------------------------


def test_a_comparison_overlays_the_same_charts(tmp_path: Path) -> None:
    runs = [load_run(preference_run(tmp_path / name, slope=slope)) for name, slope in (("one", 1.0), ("two", 0.5))]
    page = comparison(runs)
    assert titles(page) == [
        "Verdicts",
        "Settings that differ",
        "Numbers at the end",
        "Curves",
        "Drop, degradation, dispersion",
        "Gradient entanglement",
        "Fixed prompts at the end",
        "Cost",
        "Limits",
    ]
    assert [(key.label, key.style, key.value) for key in page.runs] == [
        ("A one", 0, str(tmp_path / "one")),
        ("B two", 1, str(tmp_path / "two")),
    ]
    assert only(page.sections[0], Table).header == ("", "A one", "B two")
    drop = only(page.sections[4], Charts).charts[0]
    assert [(key.label, key.style, key.value) for key in drop.legend] == [("A", 0, "-1.4"), ("B", 1, "-0.7")]
    assert charts(page.sections[4]) == ["Drop", "Degradation", "Dispersion"]
    assert charts(page.sections[3])[:2] == ["Loss: training", "Loss: held-out"]
    assert [chart.title for chart in chosen(page)] == [
        "Chosen and rejected: chosen",
        "Chosen and rejected: rejected",
        "Accuracy: probe set",
        "Dispersion",
    ]
    assert [block for section in page.sections if section.title == "Cost" for block in section.blocks] == [
        Table(
            ("", "A one", "B two"),
            [
                ("time", "13 min", "13 min"),
                ("peak memory", "1.50 GiB", "1.50 GiB"),
                ("tokens", "1,254,000", "1,254,000"),
            ],
        )
    ]
    assert first_words(page)[0].text == "A yes · B not shown"


def test_runs_of_two_kinds_are_refused(tmp_path: Path) -> None:
    runs = [load_run(unlearning_run(tmp_path / "npo")), load_run(reward_run(tmp_path / "rm"))]
    with pytest.raises(UserError, match=r"npo \(unlearning\) and .*rm \(reward\) cannot be compared"):
        comparison(runs)


# --- text and size ---------------------------------------------------------------------------------------------------


def test_text_is_cut_with_a_count_and_hides_nothing() -> None:
    assert shown("a\tb\r\nc") == "a\tb\nc"
    assert shown("\u202eabc\u2069 \x00\x1b[0m\ud800\ufeff") == "<U+202E>abc<U+2069> <U+0000><U+001B>[0m<U+D800><U+FEFF>"
    assert shown("👩‍👧 é 中") == "👩‍👧 é 中"
    assert shown("x" * 1_000_000) == "x" * 4000 + " ... (and 996,000 more characters)"


def test_no_text_becomes_markup_anywhere_in_the_page(tmp_path: Path) -> None:
    text = hostile()
    run = load_run(preference_run(tmp_path / "run", text=text, name=text, objective={"name": text}, seed=text))
    html = render(document(run))
    html.encode()  # no half of a pair of surrogates is left
    assert html.count("<script") == html.count("<img") == html.count("<link") == 0
    assert html.count("</style>") == html.count("<style>") == 1
    assert "{{ 7 * 7 }}" in html
    assert "49" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", html)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html
    assert not re.search(r"(src|href)=\"(?!#)", html)


def test_a_hundred_thousand_log_lines_make_a_small_page_that_keeps_their_spikes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=100_000)
    metrics = [
        {
            "step": step + 1,
            "loss": 1 + 0.1 * value,
            "grad_norm": 2 + value / 9,
            "rewards/margins": value,
            "rewards/accuracies": 0.6,
            "probe": {"chosen": span(value), "rejected": span(-value), "drift": span(0.1), "below": span(0.5)},
        }
        for step, value in enumerate(noise.tolist())
    ]
    metrics[54_321]["loss"] = 77.5
    folder = write_run(tmp_path / "long", metrics, None)
    began = time.monotonic()
    html, png = write_report([load_run(folder)], folder)
    assert time.monotonic() - began < 60  # 6 s alone on one core
    assert html.stat().st_size < 1_000_000
    assert png.stat().st_size < 1_000_000
    assert "highest 77.5" in html.read_text(encoding="utf-8")


# --- the picture -----------------------------------------------------------------------------------------------------


def test_the_picture_is_a_png_with_what_says_most(tmp_path: Path) -> None:
    page = document(load_run(preference_run(tmp_path / "run", text=hostile(), name="日本語 $x$ \u202e")))
    assert [chart.title for chart in chosen(page)] == ["Chosen and rejected", "Accuracy", "Dispersion", "Reverse KL"]
    assert first_words(page)[0].name == "learned"
    image = picture(page)
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(image[at : at + 4], "big") for at in (16, 20))
    assert (width, 700 < height < 1400) == (1440, True)
    assert plain("日本語 $x$ \u202e é") == "??? $x$ <U+202E> é"


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [], None)
    with pytest.raises(UserError) as error:
        write_report([load_run(folder)], folder)
    assert str(error.value) == f"{folder}: metrics.jsonl holds no record, so there is nothing to report yet."
    assert sorted(file.name for file in folder.iterdir()) == ["metrics.jsonl", "recipe.lock.yaml"]
    (folder / "metrics.jsonl").write_text('{"step": -3}\n')
    with pytest.raises(UserError, match=r"nothing to report yet\. .*: 1 line is no JSON object or has no step and was"):
        write_report([load_run(folder)], folder)


def test_a_report_is_the_same_each_time(tmp_path: Path) -> None:
    folder = preference_run(tmp_path / "run")
    first = [file.read_bytes() for file in write_report([load_run(folder)], folder)]
    assert [file.read_bytes() for file in write_report([load_run(folder)], folder)] == first
    assert json.loads((folder / "verdict.json").read_text())["findings"]["learned"]["text"] in first[0].decode()
