"""``align chat``, as a user calls it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from adapted import adapter, base
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.cli.main import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``made``, an adapter on ``base``."""
    folder = tmp_path_factory.mktemp("place")
    adapter(folder / "made", base(folder / "base"))
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    capsys.readouterr()


def chat(monkeypatch: pytest.MonkeyPatch, said: str, *words: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    return main(["chat", *words])


def answers(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


SHORT = ("--max-new-tokens", "6", "--json")


def test_two_models_answer_in_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(monkeypatch, "Hello\nAgain\n", "made", "base", *SHORT) == 0
    found = answers(capsys)
    assert [one["model"] for one in found] == ["made", "base", "made", "base"]
    assert found[0]["text"] != found[1]["text"]
    assert chat(monkeypatch, "Hello\nAgain\n", "base", "base", *SHORT) == 0
    one, same, *_ = again = answers(capsys)
    assert one["text"] == same["text"] == found[1]["text"]  # the same seed for both, and in every call
    assert again[2]["text"] == found[3]["text"]
    assert chat(monkeypatch, "Hello\n", "base", *SHORT, "--seed", "1") == 0
    assert answers(capsys)[0]["text"] != one["text"]


def test_answers_are_drawn_as_the_model_says_unless_told_otherwise(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own, cold = tmp_path / "own", ("base", *SHORT, "--temperature", "0.1", "--top-p", "0.9")
    shutil.copytree(place / "base", own)
    config = {"do_sample": True, "temperature": 0.1, "top_p": 0.9, "top_k": 40}
    (own / "generation_config.json").write_text(json.dumps(config))

    def first(*words: str) -> tuple[str, str]:
        assert chat(monkeypatch, "Hello\n", *words) == 0
        found = capsys.readouterr()
        return json.loads(found.out)["text"], found.err

    text, said = first(str(own), *SHORT)
    assert f"{own}: temperature 0.1, top_k 40, top_p 0.9\n" in said
    assert text == first(*cold)[0] != first("base", *SHORT)[0]
    assert "base: temperature 1\n" in first("base", *SHORT)[1]
    assert first(str(own), *SHORT, "--temperature", "0")[1].endswith("own: the likeliest token each time\n")
    (own / "generation_config.json").write_text(json.dumps({**config, "do_sample": False}))
    assert first(str(own), *SHORT)[0] == first("base", *SHORT)[0]  # settings of a model that does not say that it draws


def test_a_reset_begins_anew(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(monkeypatch, "Hello\nHello\n/reset\nHello\n/quit\nHello\n", "base", *SHORT) == 0
    first, second, third = (one["text"] for one in answers(capsys))
    assert first == third != second


def test_a_backslash_goes_on_in_the_next_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("base", *SHORT, "--temperature", "0")
    assert chat(monkeypatch, "The sea\\\nis blue\n", *how) == 0
    (together,) = answers(capsys)
    assert chat(monkeypatch, "The sea\nis blue\n", *how) == 0
    assert len(answers(capsys)) == 2
    assert chat(monkeypatch, "The sea\\\nis blue", *how) == 0  # the end of a pipe is the end of a line
    assert answers(capsys) == [together]


def test_what_a_terminal_obeys_is_written_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    (escape,) = tokenizer("\x1b").input_ids
    model = tiny_model("phi-head-bias", vocab_size=len(tokenizer))
    with torch.no_grad():
        model.lm_head.bias[escape] += 1000
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capsys.readouterr()
    assert chat(monkeypatch, "Hello\n", str(tmp_path), "--max-new-tokens", "3") == 0
    assert capsys.readouterr().out == "\\x1b\\x1b\\x1b  [cut off: --max-new-tokens]\n"


def test_names_stand_above_two_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(monkeypatch, "Hello\n", "made", "base", "--max-new-tokens", "2", "--temperature", "0") == 0
    lines = capsys.readouterr().out.split("\n")
    assert [line for line in lines if line.endswith(":")] == ["made:", "base:"]


def test_a_mistake_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        (("made", "base", "base"), "align chat takes one model or two, not 3."),
        (("base", "--temperature", "-1"), "--temperature: input should be greater than 0, got -1."),
        (("base", "--top-p", "2"), "--top-p: input should be less than or equal to 1, got 2."),
        (("base", "--max-new-tokens", "0"), "--max-new-tokens: input should be greater than or equal to 1, got 0."),
    ):
        assert chat(monkeypatch, "", *words) == 2
        assert capsys.readouterr().err == f"{sentence}\n"
    assert chat(monkeypatch, "word " * 300 + "\n", "base") == 2  # of a pipe: nobody is there to try again
    assert "which leaves no room for a completion: the model reads 128 at most" in capsys.readouterr().err
