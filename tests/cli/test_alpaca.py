"""``align eval alpaca`` as a user calls it: annotations, answers, a model, and a judge behind a server."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FaultyServer, preference
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.cli.main import main
from align.eval.alpaca_judge import is_switched

ROWS = [
    {"instruction": f"Say the number {i}.", "output": "It is " + "so " * (i % 5), "generator": "ref"} for i in range(20)
]


def verdict(path: str, body: dict[str, Any]) -> Any:
    """Reads the official question; the longer answer is likelier."""
    roles = [turn["role"] for turn in body["messages"]]
    assert roles == ["system", "user"]
    assert (body["max_tokens"], body["logprobs"], body["temperature"]) == (1, True, 1.0)
    first, second = re.findall(r'"output": """(.*?)"""\n', body["messages"][1]["content"], re.DOTALL)
    p = preference(first, second)
    top = [{"token": token, "logprob": math.log(share)} for token, share in (("m", p), ("M", 1 - p), (" m", 0.9))]
    content = [{**top[0], "top_logprobs": top}]
    return 200, {}, {"choices": [{"message": {"content": "m"}, "logprobs": {"content": content}}]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a reference, answers, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(sys.modules, "judging_alpaca", raising=False)
    (tmp_path / "reference.json").write_text(json.dumps(ROWS))
    answers = [{**row, "output": "Well: " + "so " * (i // 5), "generator": "mine"} for i, row in enumerate(ROWS)]
    (tmp_path / "outputs.json").write_text(json.dumps(answers))
    (tmp_path / "judging_alpaca.py").write_text(
        "def longest(prompts, responses):\n    return [len(r) for r in responses]\n"
    )
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["eval", "alpaca", *words])
    out, err = capsys.readouterr()
    return code, out, err


def expected(outputs: list[dict[str, Any]]) -> list[float]:
    return [1 + preference(mine["output"], row["output"]) for mine, row in zip(outputs, ROWS, strict=True)]


def test_answers_are_judged_once_in_the_official_order_and_layout(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultyServer(reply=verdict) as server:
        words = ("--outputs", "outputs.json", "--reference", "reference.json", "--judge", f"endpoint:{server.url}#gpt")
        code, out, err = call(capsys, *words, "--json", "--agreement", "5")
        assert code == 0, err
        first = server.requests
        assert first == 1 + 20 + 5  # one to see whether it answers at all
        code, again, _ = call(capsys, *words, "--json", "--agreement", "5")
        assert code == 0
        assert server.requests == first
    found = json.loads(out)
    assert json.loads(again) == found
    rows = json.loads((place / "alpaca-eval/annotations.json").read_text())
    wanted = expected(json.loads((place / "outputs.json").read_text()))
    # up to the sides' order, in which equal shares of other spellings do not count
    assert [row["preference"] for row in rows] == pytest.approx(wanted, abs=1e-9)
    assert [row["is_switched_outputs"] for row in rows] == [is_switched(row["instruction"]) for row in ROWS]
    assert {row["annotator"] for row in rows} == {"gpt at 127.0.0.1 with AlpacaEval's question"}
    assert (rows[3]["generator_1"], rows[3]["generator_2"], rows[3]["output_1"]) == ("ref", "mine", ROWS[3]["output"])
    assert found["win_rate"] == pytest.approx(100 * (sum(wanted) / 20 - 1), abs=1e-9)
    assert found["benchmark"].endswith("judged by gpt at 127.0.0.1 with AlpacaEval's question: not AlpacaEval 2")
    assert found["length_controlled_winrate"] is None
    assert found["missing"]["length_controlled_winrate"].startswith("20 instructions of 20 not of AlpacaEval")
    assert found["agreement"] == 1.0
    assert json.loads((place / "alpaca-eval/result.json").read_text()) == found


def test_what_was_judged_before_a_kill_is_not_asked_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultyServer(reply=verdict) as server:
        words = ("--outputs", "outputs.json", "--reference", "reference.json", "--judge", f"endpoint:{server.url}#gpt")
        code, _, err = call(capsys, *words, "--max-calls", "17")
        assert code == 2
        assert "17 calls are allowed, 17 were made and 4 more are needed" in err
        code, out, err = call(capsys, *words)
        assert code == 0, err
        assert "judged before: 1 of 2 parts" in out
        assert server.requests == 1 + 20
        assert max(server.asked.values()) == 1


def test_verdicts_of_a_judge_that_was_changed_are_not_taken_for_its_own(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--outputs", "outputs.json", "--reference", "reference.json", "--json")
    words = (*words, "--judge", "function:judging_alpaca:longest", "--allow-code")
    rates = []
    for sign in "+", "-":
        text = f"def longest(prompts, responses):\n    return [{sign}len(r) for r in responses]\n"
        (place / "judging_alpaca.py").write_text(text)
        monkeypatch.delitem(sys.modules, "judging_alpaca", raising=False)
        shutil.rmtree(place / "__pycache__", ignore_errors=True)
        code, out, err = call(capsys, *words)
        assert code == 0, err
        rates.append(json.loads(out)["win_rate"])
    assert rates[0] == pytest.approx(100 - rates[1], abs=1e-9)
    assert rates[0] != rates[1]


def test_damaged_verdicts_are_judged_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--outputs", "outputs.json", "--reference", "reference.json")
    words = (*words, "--judge", "function:judging_alpaca:longest", "--allow-code", "--json")
    code, first, err = call(capsys, *words)
    assert code == 0, err
    kept = sorted((place / "alpaca-eval/judged").iterdir())
    assert len(kept) == 2
    for text in ("[0.5", "[7, 7]", "{}"):
        kept[0].write_text(text)
        code, again, err = call(capsys, *words)
        assert (code, again) == (0, first)
        assert "judged before: 1 of 2 parts" in err


def test_a_judge_that_names_neither_letter_is_found_before_anything_is_judged(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(path: str, body: dict[str, Any]) -> Any:
        return 200, {}, {"choices": [{"message": {"content": "Both"}, "logprobs": None}]}

    with FaultyServer(reply=wrong) as server:
        words = ("--outputs", "outputs.json", "--reference", "reference.json", "--judge", f"endpoint:{server.url}#gpt")
        code, _, err = call(capsys, *words)
        assert server.requests == 1
    assert code == 2
    assert err.endswith(
        "asked which of two answers is better, it named neither m nor M, so that nothing would be judged. Take a model "
        "that follows instructions.\n"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer(chat=True)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=128, **ends).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_answers_and_a_function_judges(place: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(model), "--reference", "reference.json", "--judge", "function:judging_alpaca:longest", "--allow-code")
    code, out, err = call(capsys, *words, "--max-new-tokens", "5", "--out", "here", "--limit", "18")
    assert code == 0, err
    outputs = json.loads((place / "here/model_outputs.json").read_text())
    assert [row["instruction"] for row in outputs] == [row["instruction"] for row in ROWS[:18]]
    assert {row["generator"] for row in outputs} == {str(model)}
    rows = json.loads((place / "here/annotations.json").read_text())
    for row in rows:
        ours, theirs = len(row["output_2"]), len(row["output_1"])
        assert row["preference"] == 1 + (ours > theirs) + (ours == theirs) / 2
    assert "limited to 18 rows: no result" in out
    assert "a call that is interrupted goes on when it is made again" in out
    before = (place / "here/answers.jsonl").stat().st_mtime_ns
    code, out, _ = call(capsys, *words, "--max-new-tokens", "5", "--out", "here", "--limit", "18")
    assert code == 0
    assert "answers: those of here/answers.jsonl" in out
    assert (place / "here/answers.jsonl").stat().st_mtime_ns == before
    assert json.loads((place / "here/model_outputs.json").read_text()) == outputs
    code, _, err = call(capsys, *words, "--max-new-tokens", "6", "--out", "here", "--limit", "18")
    assert (code, err) == (
        2,
        "here holds answers that were drawn otherwise (sampling.max_new_tokens): name another folder with --out, or "
        "remove here.\n",
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "align eval alpaca takes one of a run or model, --outputs FILE, and --annotations FILE."),
        (
            ("--outputs", "outputs.json"),
            "align eval alpaca needs --judge: who compares the answers, such as endpoint:URL#MODEL.",
        ),
        (
            ("--annotations", "x.json", "--judge", "reward:m"),
            "These rows are judged already, and --judge says how to: leave it out.",
        ),
        (
            ("--outputs", "outputs.json", "--judge", "reward:m", "--seed", "1"),
            "These answers are drawn already, and --seed says how to: leave it out.",
        ),
        (("--annotations", "x.json"), "x.json: cannot be read (No such file or directory)."),
        (
            ("--annotations", "outputs.json"),
            "outputs.json, row 1: expected text as output_1; the row has 'instruction', 'output', 'generator'.",
        ),
        (("m", "--judge", "reward:m", "--limit", "0"), "--limit: must be at least 1, got 0."),
        (
            ("m", "--judge", "reward:m", "--temperature", "0"),
            "--temperature: must be above 0, got 0. Without it the likeliest is taken.",
        ),
        (("m", "--judge", "reward:m", "--reference", "none.json"), "--reference none.json: there is no such file."),
    ],
)
def test_mistakes(place: Path, words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, *words)
    assert code == 2
    assert err == f"{sentence}\n"


def annotation(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"instruction": f"Do {number}.", "output_1": "a", "output_2": "b", "preference": 1.25} | changes


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [annotation(0), annotation(0)],
            "a.json, row 2: its instruction is that of row 1, too. Each instruction is judged once: give the "
            "annotations of one model by one judge.",
        ),
        (
            [annotation(preference=2.5)],
            "a.json, row 1: preference is 2.5; expected a number from 1 (output_1 wins) to 2, 0 for a tie, or null.",
        ),
        (
            [annotation(preference=True)],
            "a.json, row 1: preference is True; expected a number from 1 (output_1 wins) to 2, 0 for a tie, or null.",
        ),
        (
            [{"instruction": "Do.", "output_1": "a", "output_2": "b"}],
            "a.json, row 1: it has no preference; expected a number from 1 (output_1 wins) to 2, or null.",
        ),
        (
            [annotation(0, generator_2="x"), annotation(1, generator_2="y")],
            "a.json: generator_2 has 2 names (x, y); give annotations of one model by one judge.",
        ),
        (
            [annotation(0, preference=None), annotation(1)],
            "1 row of 2 was judged, and a win rate needs two at least.",
        ),
    ],
)
def test_annotations_that_are_none(
    place: Path, rows: list[dict[str, Any]], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "a.json").write_text(json.dumps(rows))
    code, _, err = call(capsys, "--annotations", "a.json")
    assert code == 2
    assert err == f"{sentence}\n"


def test_difficulties_as_pandas_writes_them_and_broken_ones(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a.json").write_text(json.dumps([annotation(0), annotation(1)]))
    (place / "plain.csv").write_text(",instruction_difficulty\n0,0.25\n1,-1.5\n")
    from align.eval.alpaca_rows import read_difficulty

    assert read_difficulty("plain.csv") == {0: 0.25, 1: -1.5}
    os.mkfifo(place / "pipe.csv")
    code, _, err = call(capsys, "--annotations", "a.json", "--difficulty", "pipe.csv")
    assert (code, err) == (2, "--difficulty pipe.csv: there is no such file.\n")
    for text, sentence in (
        ("index,instruction_difficulty\n0,hard\n", "instruction_difficulty must be a number, and one is 'hard'."),
        ("index,other\n0,1\n", "expected the columns index and instruction_difficulty; it has 'index', 'other'."),
        ("", "d.csv holds no rows."),
    ):
        (place / "d.csv").write_text(text)
        code, _, err = call(capsys, "--annotations", "a.json", "--difficulty", "d.csv")
        assert code == 2
        assert err.removeprefix("d.csv: ") == f"{sentence}\n"
    (place / "anchors.csv").write_text("preference,std_delta_len,instruction_difficulty\n1.5,0,0\n")
    code, _, err = call(capsys, "--annotations", "a.json", "--difficulty", "plain.csv", "--anchors", "anchors.csv")
    assert code == 2
    assert err == "anchors.csv: preference is from 0 to 1 here, and it is from 1.5 to 1.5.\n"
