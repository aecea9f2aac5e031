"""``align report``: what it writes and where, what it prints, and every mistake in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import preference_run, reward_run, unlearning_run, write_run

from align.cli.main import main


def test_one_run_gets_its_report_beside_its_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = preference_run(tmp_path / "dpo")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report  {run}/report.html and {run}/report.png\n"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_is_written_to_the_current_folder_or_to_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [str(preference_run(tmp_path / name, prompts=1)) for name in ("one", "two", "three")]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["report", *runs]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report  report.html and report.png"
    assert "C three" in Path("report.html").read_text(encoding="utf-8")
    assert main(["report", *runs, "--out", "new/folder", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"html": "new/folder/report.html", "png": "new/folder/report.png"}
    assert Path("new/folder/report.png").is_file()
    assert not (tmp_path / "one" / "report.html").exists()


def test_what_was_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = reward_run(tmp_path / "rm")
    (run / "eval" / "broken.json").write_text("[1")
    assert main(["report", str(run)]) == 0
    warning, last = capsys.readouterr().out.splitlines()
    assert warning == f"warning: {run}/eval/broken.json is damaged and was left out: it holds no JSON object."
    assert last.startswith("report  ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "nothing: no such folder. Name a run's directory."),
        (["holder"], "holder is no run: it holds no recipe.lock.yaml. These in it are: inside."),
        (["begun"], "begun: metrics.jsonl holds no record, so there is nothing to report yet."),
        (["dpo", "./dpo"], "dpo is named twice: a comparison with itself shows nothing. Name another run."),
        (
            ["npo", "rm"],
            "npo (unlearning) and rm (reward) cannot be compared: runs of these kinds are measured by different "
            "numbers. Compare runs of one kind.",
        ),
        (["rm", "--out", "rm/metrics.jsonl"], "--out rm/metrics.jsonl is a file; name a folder."),
    ],
)
def test_mistakes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    unlearning_run(Path("npo"))
    reward_run(Path("rm"))
    preference_run(Path("dpo"), prompts=1)
    write_run(Path("begun"), [], None)
    write_run(Path("holder/inside"), [], None)
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err.strip() == sentence
    assert not list(tmp_path.rglob("report.*"))
