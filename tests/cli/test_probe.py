"""``align probe``, as a user calls it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from judges.test_models import save_reward

from align.cli.main import main

CODE = """
def overlap(prompts, responses):
    return [len(set(p.split()) & set(r.split())) for p, r in zip(prompts, responses)]

def either(prompts, a, b):
    return [0.5] * len(a)
"""
ROWS = [
    {
        "instruction_j": f"say x{n}",
        "response_j": f"x{n} it is",
        "instruction_k": f"say y{n}",
        "response_k": f"y{n} it is",
    }
    for n in range(20)
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "probed_here", raising=False)
    (tmp_path / "probed_here.py").write_text(CODE)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rows = [{"prompt": f"tell me all about {w}", "chosen": w, "rejected": "no"} for w in ("bees", "cats", "dogs")]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(("probe", "consistency", *words))
    return code, *capsys.readouterr()


FUNCTION = ("--function", "probed_here:overlap", "--allow-code")


def test_a_function_is_probed(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    code, out, err = call(capsys, *FUNCTION, "--pairs", "pairs.jsonl", "--json", "--out", "out.json")
    found = json.loads(out)
    assert code == 0
    assert err == "20 contrast pairs from pairs.jsonl\n"
    both = found["metrics"]["C_res"]["both"]
    assert both[">"] == {"value": 1.0, "low": pytest.approx(0.8389, abs=1e-4), "high": 1.0, "n": 20}
    assert (both["chance"], both["additive"], found["interaction"]) == (0.5, 0.5, 1.0)
    assert found["versions"]["torch"]
    log = json.loads((place / "out.json").read_text())
    assert log["log"][0]["scores"] == [[1.0, 0.0], [0.0, 1.0]]
    code, out, _ = call(capsys, *FUNCTION, "--pairs", "pairs.jsonl")
    assert code == 0
    assert "C_res, both   1.000  0.839 to 1.000  1.000     0   0.500     0.500" in out
    assert "C_res 1.000 [0.839, 1.000], 20 pairs: above 0.5, so the model tells" in out


def test_a_reward_model_is_probed(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    save_reward(place / "rm")
    code, out, _ = call(capsys, "rm", "--pairs", "pairs.jsonl", "--json")
    found = json.loads(out)
    assert (code, found["judge"], found["pairs"]) == (0, "rm", 20)
    assert found["form"] == "instructions are put as a user's turn: '{instruction}'"
    assert 0 < found["interaction"] < 1


def test_built_pairs_are_saved_and_give_the_same_figures(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    band = ("--band", "0.1", "0.9", "--save-pairs", "built.jsonl")
    code, out, err = call(capsys, *FUNCTION, "--from", "preferences.jsonl", *band, "--json")
    built = json.loads(out)
    assert (code, built["pairs"], built["encoder"]) == (0, 1, "TF-IDF")
    assert built["dropped"] == {"instructions without a partner in the band": 1}
    assert "since no sentence encoder is given" in err
    again = json.loads(call(capsys, *FUNCTION, "--pairs", "built.jsonl", "--json")[1])
    assert (again["metrics"], again["form"]) == (built["metrics"], built["form"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--pairs", "p"),
            "A probe asks one judge: name RM, --function MODULE:NAME or, for stability and benchmark, --pair MODEL.",
        ),
        (("rm",), "align probe consistency needs one set: --pairs FILE, or --from FILE to build it."),
        (("rm", "--pairs", "p", "--band", "0", "1"), "--band has no effect with --pairs: leave it out."),
        (("rm", "--from", "p", "--response", "k"), "--response has no effect with --from: leave it out."),
        (("rm", "--pairs", "p", "--out", "no/x"), "--out no/x: there is no folder no."),
        (
            ("--function", "probed_here:either", "--allow-code", "--pairs", "pairs.jsonl"),
            "--function probed_here:either: it compares two answers (a, b), but this probe needs a score for each: "
            "write a function of (prompts, responses).",
        ),
        (
            (*FUNCTION, "--from", "preferences.jsonl", "--column", "chosen"),
            "--column chosen: expected OURS=THEIRS, as in chosen=response_j.",
        ),
    ],
)
def test_what_is_wrong_is_told(
    capsys: pytest.CaptureFixture[str], place: Path, words: tuple[str, ...], sentence: str
) -> None:
    code, _, err = call(capsys, *words)
    assert (code, err) == (2, f"{sentence}\n")


def test_code_runs_only_where_it_is_allowed(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    code, _, err = call(capsys, *FUNCTION[:2], "--pairs", "pairs.jsonl")
    assert code == 2
    assert "is Python code" in err


@pytest.mark.parametrize("word", ["C_res", "C_ins", "additive", "null model"])
def test_words_of_the_output_are_explained(capsys: pytest.CaptureFixture[str], word: str) -> None:
    capsys.readouterr()
    assert main(["explain", word]) == 0
    assert capsys.readouterr().out.startswith(f"{word}  ")
