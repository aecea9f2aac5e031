"""The benchmark on released contrast pairs: which rows it takes, figures by hand, and a whole run on tiny models."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sample_rows import real
from tiny import tiny_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from align.data.rows.embedding import Embedder
from align.data.tokens.samples import Prompt
from align.data.tokens.tokenize import prepare
from align.errors import UserError
from align.judges.judge import ScoreJudge

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "contrast_para.py"
spec = importlib.util.spec_from_file_location("contrast_para_benchmark", SCRIPT)
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = script  # dataclasses look for their module
spec.loader.exec_module(script)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "DATA", real("contrast_instructions"))


def questions(rows: Sequence[dict[str, str]]) -> set[str]:
    return {" ".join(row["prompt"].split()).casefold() for row in rows}


@pytest.mark.usefixtures("data")
def test_no_question_of_a_contrast_pair_is_trained_on() -> None:
    rows, leaky = script.read_all(False, 300), script.read_all(True, 300)
    asked = {
        " ".join(text.split()).casefold()
        for pair in rows.contrasts.pairs
        for text in (pair.instruction_1, pair.instruction_2)
    }
    assert (len(rows.train), rows.dropped, len(rows.held_out), len(rows.contrasts.pairs)) == (2112, 1845, 300, 289)
    assert not questions(rows.train) & asked
    assert not questions(rows.train) & questions(rows.held_out)
    assert (len(leaky.train), leaky.dropped) == (3957, 0)
    assert len(questions(leaky.train) & asked) > 100
    assert not questions(leaky.train) & questions(leaky.held_out)


@pytest.mark.usefixtures("data")
def test_rows_and_contrast_pairs_are_one_form_and_the_preferred_answer_is_j() -> None:
    rows = script.read_all(True, 1)
    assert rows.train[0] == {
        "prompt": "Question: Borussia Dortmund has clinched their Champions League final spot\nAnswer: ",
        "chosen": "Borussia Dortmund ousts Real Madrid reaches Champions League final",
        "rejected": "What a good team Borussia Dortmund is",
    }
    pair = rows.contrasts.pairs[0]
    assert pair.instruction_1 == "Question: All living US Presidents in the same place at the same time\nAnswer: "
    assert pair.response_1 == "Obama Its great to be here with all the current livng Presidents"


@pytest.mark.usefixtures("data")
def test_a_row_has_the_same_tokens_in_training_and_before_the_judge() -> None:
    from datasets import Dataset

    rows, tokenizer = script.read_all(True, 1).train[:50], tiny_tokenizer()
    prepared, _ = prepare(Dataset.from_list(rows), tokenizer, ("chosen", "rejected"))
    for row, trained in zip(rows, prepared, strict=True):
        judged = [*tokenizer(row["prompt"] + row["chosen"]).input_ids, tokenizer.eos_token_id]
        assert trained["prompt_ids"] + trained["chosen_ids"] == judged


def test_absent_data_and_models_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--encoder", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path} holds no model: run make test, which makes it, or name another folder.\n"
    )
    monkeypatch.setattr(script, "DATA", tmp_path / "contrast_instructions")
    with pytest.raises(UserError, match="contrast_instructions is absent: set ALIGN_TEST_DATA to the folder that"):
        script.read_all(False, 1)


def test_accuracy_counts_ties_as_half() -> None:
    rows = [{"prompt": "p", "chosen": good, "rejected": bad} for good, bad in (("aaa", "b"), ("a", "b"), ("a", "bb"))]
    found = script.accuracy(lambda _, answers: [len(answer) for answer in answers], rows)
    assert (found["value"], found["n"]) == (pytest.approx(0.5, rel=1e-12, abs=0), 3)


def numbers(value: float, low: float, high: float) -> dict[str, dict[str, float]]:
    return {figure: {"value": value, "low": low, "high": high} for figure in script.FIGURES}


FOUND = {
    "runs": {
        "minilm/no/0": {"fusion": {"no": numbers(0.5, 0.4, 0.6), "yes": numbers(0.5, 0.4, 0.6)}},
        "minilm/yes/0": {"fusion": {"no": numbers(0.6, 0.5, 0.7), "yes": numbers(0.5, 0.4, 0.6)}},
        "minilm/no/1": {"fusion": {"no": numbers(0.7, 0.6, 0.8), "yes": numbers(0.75, 0.65, 0.85)}},
        "minilm/yes/1": {"fusion": {"no": numbers(0.55, 0.45, 0.65), "yes": numbers(0.5, 0.4, 0.6)}},
    },
    "nulls": {"longest": numbers(0.48, 0.41, 0.55)},
}


def test_cells_hold_the_mean_the_range_and_the_outer_ends_of_the_intervals() -> None:
    lines = script.table(FOUND)
    assert lines[0] == (
        "| model | ConvexDA | RewardFusion | seeds | held-out accuracy | C_res, both | C_ins, both | C_res, query "
        "| C_ins, query |"
    )
    assert lines[2] == "| minilm | no | no | 2 |" + " 0.600 (0.50 to 0.70) [0.40, 0.80] |" * 5
    assert lines[5] == "| minilm | yes | yes | 2 |" + " 0.500 (0.50 to 0.50) [0.40, 0.60] |" * 5
    assert lines[6] == "| longest answer | | | |" + " 0.480 [0.41, 0.55] |" * 5
    assert len(lines) == 7


def test_changes_are_told_seed_by_seed() -> None:
    lines = script.changes(FOUND)
    assert lines[:2] == [
        "minilm, accuracy: ConvexDA +0.100 / -0.150",
        "minilm, accuracy: RewardFusion +0.000 / +0.050",
    ]
    assert len(lines) == 6


class Noting(ScoreJudge):
    name = "noting"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        self.asked += responses
        return [float(len(str(prompt) + response)) for prompt, response in zip(prompts, responses, strict=True)]


def test_nothing_is_asked_or_embedded_twice() -> None:
    judge = Noting()
    known = script.Remembered(judge)
    assert known.score(["p", "pp", "p"], ["a", "a", "a"]) == [2.0, 3.0, 2.0]
    assert known.score(["p", "p"], ["bb", "a"]) == [3.0, 2.0]
    assert judge.asked == ["a", "a", "bb"]
    texts: list[str] = []

    def encode(new: Sequence[str]) -> np.ndarray:
        texts.extend(new)
        return np.array([[len(text), 1.0] for text in new])

    embedder = script.remembered(Embedder("e", encode))
    assert embedder.encode(["a", "bb"]).tolist() == [[1, 1], [2, 1]]
    assert embedder.encode(["bb", "ccc", "a"]).tolist() == [[2, 1], [3, 1], [1, 1]]
    assert texts == ["a", "bb", "ccc"]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """A sentence encoder and a Llama, as options of the script."""
    pytest.importorskip("sentence_transformers")
    tokenizer = tiny_tokenizer()
    common = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    common |= {"num_attention_heads": 2, "pad_token_id": tokenizer.pad_token_id}
    options = []
    for option, kind, load in (("encoder", "bert", AutoModel), ("llama", "llama", AutoModelForCausalLM)):
        folder = tmp_path / option
        load.from_config(AutoConfig.for_model(kind, **common)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        options += [f"--{option}", str(folder)]
    return options


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_whole_run_and_going_on(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    words = [*folders, "--minilm-rows", "64", "--smollm2-rows", "32", "--held-out", "40", "--out", str(out)]
    assert script.main([*words, "--seeds", "3", "--models", "minilm"]) == 0
    first = json.loads(out.read_text())
    assert list(first["runs"]) == ["minilm/no/3", "minilm/yes/3"]
    assert script.main([*words, "--seeds", "3"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert list(found["runs"]) == ["minilm/no/3", "minilm/yes/3", "smollm2/no/3", "smollm2/yes/3"]
    assert found["runs"]["minilm/no/3"] == first["runs"]["minilm/no/3"]
    assert "| smollm2 | yes | yes | 1 |" in printed
    for run in found["runs"].values():
        assert run["fusion"]["no"]["C_res, both"]["n"] == 200
        assert run["fusion"]["no"]["C_ins, query"]["n"] == 289
        assert run["fusion"]["no"]["accuracy"]["n"] == 40
    plain, convex = (found["runs"][f"minilm/{key}/3"] for key in ("no", "yes"))
    assert plain["said"] == []
    assert "ConvexDA" in convex["said"][0]
    assert script.main([*words, "--held-out", "41"]) == 2
    assert capsys.readouterr().err == f"{out} holds a run with other settings: name another file.\n"
