"""The model card of a run: what its header says, and what is left out of it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard
from run_records import DPO, record, span

from align.objectives import DPO as Objective
from align.objectives import BradleyTerry
from align.report.card import CardFacts, model_card
from align.report.thresholds import FEW_PAIRS

FINDINGS = {"learned": {"word": "yes", "accuracy": span(0.8, 0.05, 200), "start": 0.5, "pairs": "held-out"}}


def test_before_the_end_there_is_no_result_and_no_index() -> None:
    text = model_card(CardFacts("first", Objective()))
    assert "Training had not ended when this card was written." in text
    assert ModelCard(text).data.eval_results is None
    assert "## Evaluation" not in text


@pytest.mark.parametrize(
    ("held_out", "name", "kind"),
    [
        ([{"id": "some/pairs"}], "some/pairs", "some/pairs"),
        ([{"path": "/home/me/kept.jsonl"}], "kept.jsonl", "local"),
        ([{"world": {"kind": "preferences"}}, {"path": "b.csv"}], "the generated world, b.csv", "local"),
    ],
)
def test_the_index_names_the_data_set(held_out: list[dict[str, Any]], name: str, kind: str) -> None:
    recipe = {**DPO, "data": {**DPO["data"], "held_out": held_out}}
    text = model_card(CardFacts("first", Objective(), record=record(recipe=recipe, findings=FINDINGS)))
    (result,) = ModelCard(text).data.eval_results
    assert (result.dataset_name, result.dataset_type) == (name, kind)
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.8)
    assert "| accuracy on held-out pairs | 0.80 [0.75, 0.85] | 200 | 0.5 |" in text
    assert "/home/me" not in text


@pytest.mark.parametrize(("pairs", "indexed"), [(FEW_PAIRS - 1, False), (FEW_PAIRS, True)])
def test_the_index_has_no_number_of_a_few_pairs(pairs: int, indexed: bool) -> None:
    findings = {"learned": {**FINDINGS["learned"], "accuracy": span(1.0, 0.05, pairs)}}
    recipe = {**DPO, "data": {**DPO["data"], "held_out": [{"id": "some/pairs"}]}}
    text = model_card(CardFacts("first", Objective(), record=record(recipe=recipe, findings=findings)))
    assert "| accuracy on held-out pairs |" in text
    assert (ModelCard(text).data.eval_results is not None) is indexed


def test_what_was_measured_on_no_named_data_has_a_row_and_no_place_in_the_index() -> None:
    recipe = {**DPO, "data": {"train": [{"path": "rows.jsonl"}], "held_out": None}}
    found = record(recipe=recipe, metrics=[{"step": 5, "probe": {"chosen": span(-3, 1)}}], findings={})
    text = model_card(CardFacts("first", Objective(), record=found))
    assert "| change of chosen answers (nats/answer) | -3.0 [-4.0, -2.0] | 64 | - |" in text
    assert ModelCard(text).data.eval_results is None


def test_a_reward_model_is_a_classifier() -> None:
    findings = {"ranks": {"word": "yes", "accuracy": span(0.9, 0.02, 300), "start": 0.4}}
    found = record(kind="reward", findings=findings)
    data = ModelCard(model_card(CardFacts("first", BradleyTerry(), record=found))).data
    assert data.pipeline_tag == "text-classification"
    assert [result.task_type for result in data.eval_results] == ["text-classification"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/srv/x/run", "RUN/recipe.lock.yaml output=RUN-again"),
        ("/a", "RUN/recipe.lock.yaml output=RUN-again"),  # and nats/answer stays what it is
        ("dpo", "dpo/recipe.lock.yaml output=dpo-again"),  # relative: it says nothing of a machine
    ],
)
def test_folders_of_the_machine_stay_out(path: str, said: str) -> None:
    facts = {"reproduce": f"align train {path}/recipe.lock.yaml output={path}-again"}
    metrics = [{"step": 5, "probe": {"chosen": span(-3, 1)}}]
    text = model_card(CardFacts("dpo", Objective(), record=record(path, metrics=metrics, facts=facts, findings={})))
    assert f"align train {said}" in text
    assert "nats/answer" in text
    assert "(`dpo`: " in text


def test_names_and_lines_stay_text() -> None:
    """A file's name, a verdict and a command may hold what means something to Markdown or HTML."""
    evil = "[a](http://x)<img src=x>`|\n# title\n\u202e"
    more = {"data": [f"{evil}.jsonl"], "verdict": ["fine", "```", "<b>"], "settings": {"k": evil}}
    text = model_card(CardFacts(evil, Objective(), base_model="m`[a](b)", **more))
    shown = "\\[a\\](http://x)&lt;img src=x>\\`\\| # title <U+202E>".replace("<U", "&lt;U")
    assert f"# {shown}\n" in text
    assert f"- {shown}.jsonl\n" in text
    assert f"- k: {shown}\n" in text
    assert "Fine-tuned from `m[a](b)`, trained with" in text
    assert "````\nfine\n```\n<b>\n````\n" in text  # the fence is longer than what is in it
