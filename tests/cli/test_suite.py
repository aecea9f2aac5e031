"""``align eval RUN --suite NAME...`` and ``align list suites`` as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.cli.main import main
from align.cli.suite import with_suites
from align.runs.directory import RunDirectory


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(words)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("eval runs/a --suite x y", "eval suite runs/a --suite x y"),
        ("eval tofu --suite=x", "eval suite tofu --suite=x"),  # a run of that name
        ("eval suite runs/a --suite x", "eval suite runs/a --suite x"),
        ("eval tofu runs/a", "eval tofu runs/a"),
        ("sample a --suite x", "sample a --suite x"),
    ],
)
def test_a_run_with_suites_stands_beside_the_verbs(words: str, read: str) -> None:
    assert with_suites(words.split()) == read.split()


def test_suites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list", "suites", "--json")
    assert code == 0
    assert json.loads(out)["suites"]["alpaca"] == (
        "AlpacaEval's 805 instructions (arXiv 2404.04475), compared by the judge that --judge names"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--suite", "tofu-forget1"), "--suite tofu-forget1: there is no such suite. Did you mean 'tofu-forget10'?"),
        (("--suite", "alpaca", "alpaca"), "--suite: alpaca is named twice, and both would write eval/alpaca.json: name "
         "one."),
        (("--suite", "utility", "muse-news", "--judge", "reward:m"), "--judge has no effect: none of utility, "
         "muse-news asks a judge that one names. Leave it out."),
        (("--suite", "utility", "--limit", "0"), "--limit: must be at least 1, got 0."),
        (("--suite", "muse-news"), "gone is no run, which would keep its results in its folder: name one with --out "
         "FOLDER."),
    ],
)  # fmt: skip
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "eval", "gone", *words)
    assert (code, err) == (2, f"{sentence}\n")


def test_two_runs_are_measured_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several suites in one call, a file each; then ``align compare`` pairs what both runs were asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"prompt": f"What is {i}?", "chosen": " It is so" + " so" * (i % 4), "rejected": " no"} for i in range(31)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "same.yaml").write_text("kind: preference\npairs: held.jsonl\n")
    tokenizer = tiny_tokenizer(chat=False)
    for seed, name in enumerate(("start", "a", "b")):
        model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64, seed=seed)
        model.save_pretrained(tmp_path / "models" / name)
        tokenizer.save_pretrained(tmp_path / "models" / name)
    recipe = {
        "name": "run",
        "model": {"id": str(tmp_path / "models/start")},
        "data": {"train": {"path": "held.jsonl"}, "held_out": {"path": "held.jsonl"}},
        "objective": {"name": "dpo"},
    }
    shown = {}
    for name in "ab":
        run = RunDirectory(tmp_path / name)
        run.write_lock({"recipe": recipe, "base": str(tmp_path)})
        shutil.copytree(tmp_path / "models" / name, run.path / "model")
        code, out, err = call(capsys, "eval", name, "--suite", "preference-heldout", "same.yaml", "--json")
        assert code == 0, err
        found = json.loads(out)
        assert list(found) == ["preference-heldout", "same"]
        assert found["same"]["figures"] == found["preference-heldout"]["figures"]
        for suite, one in found.items():
            kept = json.loads((run.path / f"eval/{suite}.json").read_text())
            assert {key: value for key, value in kept.items() if key != "items"} == one
            shown[name] = kept
    code, out, _ = call(capsys, "compare", "a", "b", "--json")
    assert code == 0
    compared = json.loads(out)
    (paired,) = [d for d in compared["paired"]["B"]["differences"] if d["what"] == "preference-heldout: margin"]
    gaps = [shown["b"]["items"]["margin"][key] - value for key, value in shown["a"]["items"]["margin"].items()]
    assert paired["value"] == pytest.approx(sum(gaps) / 31, rel=1e-9, abs=0)
    assert (paired["n"], paired["of"]) == (31, 31)
    for label, name in (("A", "a"), ("B", "b")):
        figure = compared["numbers"]["same: accuracy"][label]
        assert figure["value"] == shown[name]["figures"]["accuracy"]["value"]
