"""``align compare``: tables that fit, JSON, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_records import DPO, probed, span

from align.cli.compare import table
from align.cli.main import main

OUTPUT = """\
A  a   preference, 10 steps
B  b   preference, 10 steps

Settings that differ  A    B
  objective.beta      0.1  0.5

Verdict        A     B
  suppression  mild  no

Numbers at the end [95 % interval]          A                  B
  change of chosen answers (nats/answer)    -3.0 [-3.5, -2.5]  1.0 [0.5, 1.5]
  change of rejected answers (nats/answer)  -2.0 [-2.5, -1.5]  -2.0 [-2.5, -1.5]

Paired differences                          B - A              n
  change of chosen answers (nats/answer)    4.00 [4.00, 4.00]  40  differs
  change of rejected answers (nats/answer)  0.00 [0.00, 0.00]  40  not shown
  change of the margin (nats/answer)        4.00 [4.00, 4.00]  40  differs
  share of pairs ordered right              1.00 [1.00, 1.00]  40  differs

""".splitlines()
NOTES = [
    "  4 paired intervals of 95 %, none adjusted for their number: of so many, 0.2 leave out 0 by chance alone where "
    "no run differs.",
    "  Each run is one seed: the intervals are about items, and know nothing of other seeds.",
]


def run(folder: Path, chosen: float, word: str, **recipe: Any) -> str:
    folder.mkdir()
    (folder / "recipe.lock.yaml").write_text(yaml.safe_dump({"recipe": {**DPO, **recipe}}))
    reading = {"chosen": span(chosen, 0.5), "rejected": span(-2, 0.5)}
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "probe": reading}) + "\n")
    rows = [f"r{i}" for i in range(40)]
    (folder / "probe.json").write_text(json.dumps(probed([chosen + i % 2 for i in range(40)], [0.0] * 40, rows)))
    (folder / "verdict.json").write_text(json.dumps({"findings": {"suppression": {"word": word, "text": ""}}}))
    return str(folder)


def test_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    first, second = run(Path("a"), -3, "mild"), run(Path("b"), 1, "no", objective={"name": "dpo", "beta": 0.5})
    assert main(("compare", first, second)) == 0
    assert capsys.readouterr().out.splitlines() == [*OUTPUT, *NOTES]
    assert main(("compare", first, second, "--json")) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["settings"] == {"objective.beta": {"A": "0.1", "B": "0.5"}}
    assert data["numbers"]["change of chosen answers"]["B"]["value"] == 1


def test_a_table_that_is_too_wide_puts_names_above_cells_and_long_cells_on_lines_of_their_own() -> None:
    rows = [("a long name of a number", "1.0 [0.5, 1.5]", "2.0"), ("path", "x" * 30, "-")]
    assert table("Title", ("A", "B"), rows, 50) == [
        "Title                      A               B",
        "  a long name of a number  1.0 [0.5, 1.5]  2.0",
        "  path",
        f"    A  {'x' * 30}",
        "    B  -",
    ]
    assert table("Title", ("A", "B"), rows[:1], 40) == [
        "Title",
        "    A               B",
        "  a long name of a number",
        "    1.0 [0.5, 1.5]  2.0",
    ]


def test_a_setting_stays_on_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("a"), -3, "no", watch={"prompts": ["red\x1b[31m\nline", "y" * 200]})
    run(Path("b"), -3, "no")
    assert main(("compare", "a", "b")) == 0
    out = capsys.readouterr().out
    assert f"    A  red [31m line, {'y' * 82}...\n    B  -\n" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("words", [("a",), ("a", "a"), ("a", "nothing")])
def test_mistakes_are_sentences(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("a"), 1, "no")
    assert main(("compare", *words)) == 2
    said = {
        ("a",): "A comparison needs at least two runs, and only a was named.\n",
        ("a", "a"): "a is named twice: a comparison with itself shows nothing. Name another run.\n",
        ("a", "nothing"): "nothing: no such folder. Name a run's directory.\n",
    }
    assert capsys.readouterr().err == said[words]
