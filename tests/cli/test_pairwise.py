"""``align eval pairwise`` as a user calls it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from faulty_server import FaultyServer, Reply, preference
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.cli.main import main
from align.models.weights import weights_digest

PROMPTS = [{"prompt": f"Say the number {i}."} for i in range(18)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of different weights in ``a`` and ``b``."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer(chat=True)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for seed, name in enumerate("ab"):
        tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64, seed=seed, **ends).save_pretrained(
            folder / name
        )
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(sys.modules, "judging_pairs", raising=False)
    long = {"prompt": [{"role": "user", "content": "again and " * 90}]}
    rows = [*PROMPTS, PROMPTS[3], long]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["eval", "pairwise", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_two_models_are_compared_and_a_call_that_failed_asks_nothing_twice(
    place: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultyServer(bias=0.15) as server:
        words = (
            str(models / "a"), str(models / "b"), "--prompts", "prompts.jsonl", "--max-new-tokens", "5",
            "--judge", f"endpoint:{server.url}#gpt", "--json",
        )  # fmt: skip
        code, out, err = call(capsys, *words, "--max-calls", "34")
        assert code == 2
        assert "34 calls are allowed" in out + err
        asked, server.most_at_once = server.requests, 0
        code, out, err = call(capsys, *words, "--concurrency", "1")
        assert code == 0, err
        assert server.most_at_once == 1
        assert "judged before: 1 of 2 parts" in err
        assert max(server.asked.values()) == 1
        assert server.requests == asked + sum(row["a"] != row["b"] for row in verdicts(place)[16:]) * 2
    found = json.loads(out)
    assert json.loads((place / "pairwise/result.json").read_text()) == found
    assert "1 prompt left out: the same as an earlier one" in err
    assert found["notes"] == ["1 prompt left out: too long for one of the models"]
    rows = verdicts(place)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in PROMPTS]
    differ = [row for row in rows if row["a"] != row["b"]]
    assert len(differ) > 10
    for row in differ:
        assert row["a_first"] == pytest.approx(preference(row["a"], row["b"]) + 0.15, abs=1e-6)
        assert row["a_second"] == pytest.approx(preference(row["a"], row["b"]) - 0.15, abs=1e-6)
    assert found["bias"]["value"] == pytest.approx(0.15, abs=1e-6)
    assert found["wins"] + found["losses"] + found["ties"] == found["win_rate"]["n"] == 18


def verdicts(place: Path) -> list[dict]:
    return json.loads((place / "pairwise/verdicts.json").read_text())


def test_answers_of_other_settings_are_not_taken_for_these(
    place: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "judging_pairs.py").write_text(
        "def longest(prompts, responses):\n    return [len(r) for r in responses]\n"
    )
    words = (str(models / "a"), str(models / "b"), "--prompts", "prompts.jsonl", "--max-new-tokens", "4")
    words = (*words, "--judge", "function:judging_pairs:longest", "--allow-code", "--limit", "2")
    exit_code, out, err = call(capsys, *words)
    assert exit_code == 0, err
    assert out.splitlines()[-1] == "too few to say: 2 prompts judged, and 30 are the least"
    assert "limited to 2 rows: no result" in out
    drawn = json.loads((place / "pairwise/b-settings.json").read_text())
    assert drawn["weights"] == weights_digest(str(models / "b")) != weights_digest(str(models / "a"))
    rows = verdicts(place)
    expected = [(len(r["a"]) > len(r["b"])) + (len(r["a"]) == len(r["b"])) / 2 for r in rows]
    assert [row["outcome"] for row in rows] == expected
    exit_code, _, err = call(capsys, *words, "--temperature", "0.5")
    assert (exit_code, err) == (
        2,
        "pairwise holds answers that were drawn otherwise (sampling.temperature, sampling.top_k): name another folder "
        "with --out, or remove pairwise.\n",
    )


@pytest.mark.parametrize(
    ("row", "words", "sentence"),
    [
        ({"text": "x"}, (), "rows.jsonl, row 1: expected a prompt, an instruction or a question; it has 'text'."),
        ({"prompt": [{"content": "x"}]}, (), "rows.jsonl, row 1: a message of prompt has no role; mend or remove the "
         "row."),
        ({"prompt": "x"}, ("--temperature", "0"), "--temperature: must be above 0, got 0. Without it the likeliest is "
         "taken."),
        ({"prompt": "x"}, ("--max-calls", "0"), "--max-calls: must be at least 1, got 0."),
        ({"prompt": "x"}, ("--timeout", "0"), "--timeout: must be at least 1, got 0."),
        ({"prompt": "x"}, ("--concurrency", "2"), "--concurrency is about a server, and none is asked: give --judge "
         "endpoint:URL#MODEL."),
        ({"prompt": "x"}, ("--limit", "0"), "--limit: must be at least 1, got 0."),
    ],
)  # fmt: skip
def test_mistakes(
    place: Path, row: dict, words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "rows.jsonl").write_text(json.dumps(row) + "\n")
    code, _, err = call(capsys, "a", "b", "--prompts", "rows.jsonl", "--judge", "reward:m", *words)
    assert (code, err) == (2, f"{sentence}\n")


def test_a_model_beside_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "a", "./a", "--prompts", "prompts.jsonl", "--judge", "reward:m")
    assert (code, err) == (
        2,
        "a is named twice: a comparison with itself shows nothing. Name another model.\n",
    )


def test_an_answer_with_neither_letter_is_no_tie(place: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def neither(path: str, body: dict) -> Reply | None:
        return (200, {}, NEITHER) if "Say the number 1" in body["messages"][0]["content"] else None

    with FaultyServer(reply=neither) as server:
        code, out, err = call(
            capsys, str(models / "a"), str(models / "b"), "--prompts", "prompts.jsonl", "--max-new-tokens", "5",
            "--judge", f"endpoint:{server.url}#gpt", "--json",
        )  # fmt: skip
    assert code == 0, err
    unread = sum(row["a"] != row["b"] and "Say the number 1" in row["prompt"] for row in verdicts(place))
    assert unread > 5
    assert [row["outcome"] for row in verdicts(place)].count(None) == unread
    found = json.loads(out)
    assert f"{unread} prompts without a verdict that could be read: in no figure" in found["notes"]
    assert found["win_rate"]["n"] == 18 - unread


NEITHER = {"choices": [{"message": {"content": "The"}, "logprobs": None}]}


def test_verdicts_of_a_judge_that_was_changed_are_not_taken_for_its_own(
    place: Path, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (str(models / "a"), str(models / "b"), "--prompts", "prompts.jsonl", "--max-new-tokens", "4", "--limit")
    words = (*words, "4", "--judge", "function:judging_pairs:score", "--allow-code")
    found = []
    for sign in "+", "-", "-":
        (place / "judging_pairs.py").write_text(
            f"def score(prompts, texts):\n    return [{sign}len(t) for t in texts]\n"
        )
        monkeypatch.delitem(sys.modules, "judging_pairs", raising=False)
        shutil.rmtree(place / "__pycache__", ignore_errors=True)
        code, out, err = call(capsys, *words)
        assert code == 0, err
        found.append([row["outcome"] for row in verdicts(place)])
    assert found[0] == [1 - value for value in found[1]] != [0.5] * 4
    assert "judged before: 1 of 1 parts" in out
