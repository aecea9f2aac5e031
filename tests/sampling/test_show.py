"""``align show samples``: counts, order, and text that cannot steer a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align.data.tokens.samples import Sample
from align.errors import UserError
from align.sampling.files import sample_row, write_table
from align.sampling.show import plain, samples

NASTY = "\x1b[31mred\x1b]0;title\x07 \u202eback\u2066 [bold]x[/bold] \x9b2J\r\x7f \U000e0041 "
NASTY += "日本\u3000語 👨\u200d👩 é\n\ttwo"


def _line(
    step: int, row: int, index: int, text: str, score: float | None = None, finish: Any = "end", selected: str = ""
) -> dict[str, Any]:
    prompt = {"row": row, "prompt": json.dumps(f"prompt {row}"), "prompt_ids": [1, 2]}
    sample = Sample(index, tuple(range(3, 3 + len(text))) or (1,), text, finish)
    return sample_row(step, prompt, sample, score=score, selected=selected)


@pytest.fixture
def online(tmp_path: Path) -> Path:
    """Two processes, steps 1 to 3: 2 prompts of 2 samples each, a score of 10 * step + row + index."""
    for rank in (0, 1):
        lines = [
            _line(
                step,
                10 * step + rank,
                index,
                "abc"[: index + 1],
                10.0 * step + rank + index,
                "length" if index else "end",
                "kept" if index else "",
            )
            for step in (1, 2, 3)
            for index in (0, 1)
        ]
        write_table(tmp_path / "samples" / f"000001-r{rank}.parquet", lines[:4])
        write_table(tmp_path / "samples" / f"000003-r{rank}.parquet", lines[4:])
    return tmp_path


def _printed(found: Any) -> str:
    out = io.StringIO()
    found.print(Console(file=out, highlight=False))
    return out.getvalue()


def test_the_last_step_and_the_counts_of_all(online: Path) -> None:
    found = samples(str(online)).to_json()
    assert found["step"] == 3
    assert found["all"] == {
        "samples": 12,
        "prompts": 6,
        "truncated": 6,
        "scored": 12,
        "mean_score": 21.0,
        "selected": {"kept": 6},
    }
    assert [(s["step"], s["mean_score"], s["samples"]) for s in found["steps"]] == [(1, 11, 4), (2, 21, 4), (3, 31, 4)]
    assert [(s["row"], s["index"], s["prompt"]) for s in found["samples"]] == [
        (30, 0, "prompt 30"),
        (30, 1, "prompt 30"),
        (31, 0, "prompt 31"),
        (31, 1, "prompt 31"),
    ]
    text = _printed(samples(str(online), step=2, count=1))
    assert "12 samples of 6 prompts, 50.0% cut at the limit, mean score 21 (n 12), 6 kept" in text
    assert "  step 1  4 samples of 2 prompts, 50.0% cut at the limit, mean score 11 (n 4), 2 kept" in text
    assert "step 2, row 20: prompt 20\n  [0] score 20, ended, 1 token\n      a\n" in text
    assert "  [1] score 21, kept, cut at the limit, 2 tokens\n      ab\n" in text
    assert "row 21" not in text


def test_best_worst_and_a_row(online: Path) -> None:
    def scores(**how: Any) -> list[float]:
        return [row["score"] for group in samples(str(online), **how).groups for row in group]

    assert scores(order="best", count=3) == [32, 31, 31]
    assert scores(order="worst", count=1, step=1) == [10]
    assert scores(row=31) == [31, 32]


def test_rounds_show_what_is_judged_of_them(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        folder = tmp_path / "rounds" / f"{number:02d}"
        write_table(folder / "samples" / "part-00000.parquet", [_line(number, 0, 0, "x"), _line(number, 0, 1, "y")])
        if number < 3:  # the third is not judged yet
            lines = [_line(number, 0, 0, "x", 1.0, selected="rejected"), _line(number, 0, 1, "y", 2.0, "end", "chosen")]
            write_table(folder / "judged" / "part-00000.parquet", lines)
    found = samples(str(tmp_path))
    assert (found.unit, found.number) == ("round", 3)
    assert [line["score"] for line in found.groups[0]] == [None, None]
    assert found.all.samples == 6
    judged = samples(str(tmp_path), round=1, order="best", count=1)
    assert [line["text"] for group in judged.groups for line in group] == ["y"]
    assert "score 2, chosen, ended" in _printed(judged)
    with pytest.raises(UserError, match="nothing scored these samples"):
        samples(str(tmp_path), order="best")
    with pytest.raises(UserError, match="give --round in place of --step"):
        samples(str(tmp_path), step=1)
    with pytest.raises(UserError, match=r"no samples of round 4\. There are samples of rounds 1, 2, 3"):
        samples(str(tmp_path), round=4)


def test_text_cannot_steer_a_terminal(tmp_path: Path) -> None:
    prompt = {"row": 0, "prompt": json.dumps([{"role": "user", "content": NASTY}]), "prompt_ids": [1]}
    lines = [sample_row(1, prompt, Sample(i, (1,), text, "end")) for i, text in enumerate((NASTY, "", " \x1b "))]
    write_table(tmp_path / "samples" / "a.parquet", lines)
    for console in ({}, {"force_terminal": True, "no_color": True}):
        out = io.StringIO()
        samples(str(tmp_path)).print(Console(file=out, highlight=False, **console))
        text = out.getvalue()
        if not console:
            assert not any(ord(c) < 32 and c != "\n" for c in text)
        assert not set("\x07\x9b\r\x7f\u202e\u2066\U000e0041\t") & set(text)
        assert "\x1b[31m" not in text
        assert "\x1b]" not in text
        assert "\\x1b[31mred\\x1b]0;title\\x07 \\u202eback\\u2066 [bold]x[/bold] \\x9b2J\\r\\x7f \\U000e0041" in text
        assert "日本\u3000語 👨\u200d👩 é" in text
        assert "\n      \\ttwo\n" in text  # line breaks of a sample are kept, those of a prompt are written out
        assert "é\\n\\ttwo" in text
        assert "(empty)" in text


def test_plain_leaves_nothing_but_print() -> None:
    for code in [*range(0x300), 0x2028, 0x2029, 0xFEFF, 0xE000, 0x10FFFF]:
        text = plain(chr(code))
        assert text.replace("\u00a0", "").isprintable()
        assert (text == chr(code)) == (chr(code).isprintable() or code == 0xA0)


def test_long_texts_lose_their_middle(tmp_path: Path) -> None:
    write_table(tmp_path / "samples" / "a.parquet", [_line(1, 0, 0, "a" * 900 + "b" * 900 + "c" * 900)])
    text = _printed(samples(str(tmp_path)))
    assert "a" * 750 + " ... (1,200 characters left out) ... " + "c" * 750 in text
    assert "b" not in text.split("\n      ")[1]


def test_a_run_of_many_steps_is_summed_up(tmp_path: Path) -> None:
    write_table(tmp_path / "samples" / "a.parquet", [_line(step, 0, 0, "x") for step in range(1, 101)])
    lines = samples(str(tmp_path), step=50).summary()
    assert len(lines) <= 10
    steps = [int(line.split()[1]) for line in lines[1:]]
    assert (steps[0], steps[-1], 50 in steps) == (1, 100, True)


def test_mistakes(online: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    for words, how, says in (
        (str(empty), {}, "has no samples: neither"),
        (str(empty / "nowhere"), {}, "no such folder"),
        (str(online), {"round": 1}, "did not go in rounds"),
        (str(online), {"step": 7}, r"no samples of step 7\. There are samples of steps 1, 2, 3"),
        (str(online), {"row": 7}, r"No sample of step 3 answers row 7\. Its rows are 30, 31"),
    ):
        with pytest.raises(UserError, match=says):
            samples(words, **how)
    (online / "samples" / "zz.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"zz\.parquet cannot be read as a table of samples"):
        samples(str(online))
