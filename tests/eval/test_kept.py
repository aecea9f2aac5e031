"""Parts of long work on disk: what is done is never done again, and what is damaged is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from align.errors import UserError
from align.eval.kept import Kept
from align.runs.processes import World


class Doubling:
    """Doubles rows; remembers which it was asked for, and fails at one of them."""

    def __init__(self, rows: Sequence[int], fails_at: int | None = None) -> None:
        self.rows, self.fails_at = rows, fails_at
        self.asked: list[int] = []

    def __call__(self, some: Sequence[int]) -> list[float]:
        if self.fails_at in some:
            raise UserError("The judge is gone.")
        self.asked += [self.rows[i] for i in some]
        return [2.0 * self.rows[i] for i in some]


def kept(folder: Path, said: list[str], rank: int = 0, size: int = 1) -> Kept:
    return Kept(folder, World(rank, size, torch.device("cpu")), said.append, size=4)


ROWS = list(range(10))


def test_a_call_that_failed_goes_on_where_it_was(tmp_path: Path) -> None:
    said: list[str] = []
    keep = kept(tmp_path, said)
    first = Doubling(ROWS, fails_at=9)
    with pytest.raises(UserError, match="The judge is gone"):
        keep(ROWS, "a", first, what="rows doubled", done="doubled")
    second = Doubling(ROWS)
    assert keep(ROWS, "a", second, what="rows doubled", done="doubled") == [2.0 * row for row in ROWS]
    assert sorted(first.asked + second.asked) == ROWS
    assert said == ["doubled before: 2 of 3 parts"]


def test_other_rows_and_other_circumstances_are_other_parts(tmp_path: Path) -> None:
    keep = kept(tmp_path, [])
    for about, rows, again in (("a", ROWS, ROWS), ("b", ROWS, ROWS), ("a", [0, 1, 2, 3, 7], [7]), ("a", ROWS, [])):
        work = Doubling(rows)
        keep(rows, about, work, what="rows doubled", done="doubled")
        assert work.asked == again


def test_parts_that_are_damaged_or_impossible_are_made_again(tmp_path: Path) -> None:
    keep = kept(tmp_path, [])
    keep(ROWS, "a", Doubling(ROWS), what="rows doubled", done="doubled")
    whole = {file: file.read_text() for file in tmp_path.iterdir()}
    assert len(whole) == 3
    for file, text in whole.items():
        for damage in (text[:-2], "[1.0]", "{}", text.replace(".0", ".5")):
            file.write_text(damage)
            work = Doubling(ROWS)
            found = keep(ROWS, "a", work, what="rows doubled", done="doubled", sound=lambda value: value % 2 == 0)
            assert found == [2.0 * row for row in ROWS]
            assert len(work.asked) in (2, 4)
            assert file.read_text() == text


def test_floats_come_back_exactly(tmp_path: Path) -> None:
    values = [0.1 + 0.2, -1e-300, 2.0**-1074, 1 / 3]
    keep = kept(tmp_path, [])
    for _ in range(2):
        assert keep(values, "a", lambda some: [values[i] for i in some], what="rows kept", done="kept") == values


def test_a_result_that_cannot_be_one_is_not_left_out_in_silence(tmp_path: Path) -> None:
    keep = kept(tmp_path, [])
    with pytest.raises(UserError) as caught:
        keep(ROWS, "a", Doubling(ROWS), what="rows doubled", done="doubled", sound=lambda value: value != 10.0)
    lost = str(caught.value).split()[1]
    assert json.loads(Path(lost).read_text()) == [8.0, 10.0, 12.0, 14.0]
    assert str(caught.value) == (
        f"doubled: {lost} was written, and cannot be read again, or does not hold a result that can be for every row. "
        "Every process needs the same folder; what can be read is kept."
    )
