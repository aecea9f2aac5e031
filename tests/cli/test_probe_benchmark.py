"""``align probe benchmark``, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import CHATML, tiny_tokenizer
from transformers import AutoModelForSequenceClassification
from zoo import stirred, tiny_config

from align.cli.main import main
from align.judges.reward import RewardModel

WORDS = ("book", "sea", "north", "apples", "person", "green", "wrote", "three")
ROWS = [
    {
        "prompt": f"Who wrote the {word}?",
        "chosen": " ".join(WORDS[: i + 1]),
        "rejected": " ".join(reversed(WORDS[i:])),
        "subset": "donotanswer",
    }
    for i, word in enumerate(WORDS)
]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(("probe", "benchmark", *words))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a benchmark and a reward model that reads conversations."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    config = tiny_config("llama", vocab_size=len(tokenizer), num_labels=1)
    stirred(AutoModelForSequenceClassification.from_config(config)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_a_reward_model_on_rewardbench(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    code, out, err = call(capsys, "model", "--data", "rows.jsonl", "--out", "found.json", "--json")
    data = json.loads(out)
    assert code == 0
    assert err.splitlines()[0] == "rows.jsonl: RewardBench, 8 rows"
    assert json.loads((place / "found.json").read_text()) == data
    # as turns of a conversation, since the tokenizer has a template; as plain texts other answers win
    judge = RewardModel("model", say=lambda _: None)
    asked = [(row["prompt"], row[side]) for row in ROWS for side in ("chosen", "rejected")]
    turns = judge.score([[{"role": "user", "content": prompt}] for prompt, _ in asked], [text for _, text in asked])
    plain = judge.score([f"Question: {prompt}\nAnswer:" for prompt, _ in asked], [f" {text}" for _, text in asked])
    wins = [[a > b for a, b in zip(scores[::2], scores[1::2], strict=True)] for scores in (turns, plain)]
    assert sum(wins[0]) != sum(wins[1])
    assert data["figures"]["donotanswer"]["value"] == sum(wins[0]) / len(ROWS)
    figure = data["figures"]["all sections"]
    assert (figure["n"], figure["chance"]) == (len(ROWS), 0.5)
    assert figure["longest"] + figure["shortest"] == 1.0
    assert (data["benchmark"], data["judge"]) == ("rewardbench", "model")


def test_a_trial_is_marked(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    code, out, _ = call(capsys, "model", "--data", "rows.jsonl", "--limit", "1")
    assert code == 0
    assert "rows.jsonl: RewardBench, 1 row" in out
    assert "limited to 1 row: no result" in out.splitlines()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "row.jsonl"), "row.jsonl: no such file or folder. Did you mean 'rows.jsonl'?\n"),
        (("--data", "rows.jsonl", "--limit", "0"), "--limit: must be at least 1, got 0.\n"),
        (("--data", "rows.jsonl", "--out", "no/x"), "--out no/x: there is no folder no.\n"),
        (
            ("--data", "rows.jsonl", "--kind", "rm_bench"),
            "rows.jsonl: RM-Bench was expected, but the columns are those of RewardBench (prompt, chosen, rejected, "
            "subset). Give one benchmark at a time.\n",
        ),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], place: Path, words: tuple[str, ...], says: str
) -> None:
    assert call(capsys, "no-such-model", *words) == (2, "", says)
