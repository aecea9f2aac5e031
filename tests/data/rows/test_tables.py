"""Tables of rows from files: read one row after the other or in pieces, once, and alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from align.data.rows import tables
from align.data.rows.files import line_pieces
from align.data.rows.sources import from_rows
from align.data.rows.tables import from_files
from align.errors import UserError


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "align"


def written(folder: Path, rows: list[dict], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kept_rows", [False, True], ids=["one after the other", "in pieces"])
@pytest.mark.parametrize(
    "rows",
    [
        [{"a": "x", "n": i} for i in range(9)],
        [{"a": "x"}] * 5 + [{"a": None, "b": i} for i in range(4)],  # a column that comes later
        [{"b": None, "a": 1}] * 4 + [{"a": 2, "b": "late"}] * 5,  # values that come later
        [{"a": 1}] * 4 + [{"a": 1.5}] * 4,  # types that only go together as a whole
        [{"a": [{"role": "user"}]}] * 4 + [{"a": [{"role": "user", "name": "x"}]}] * 4,
        [{"a": 1}] * 4 + [{"a": "one"}] * 4,  # no type at all
    ],
    ids=["plain", "late column", "late values", "numbers", "keys", "mixed"],
)
def test_rows_read_in_chunks_are_those_read_at_once(
    rows: list[dict], kept_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_AT_ONCE", 3)
    monkeypatch.setattr(tables, "_PIECE", 20)  # a row or two
    if kept_rows:
        monkeypatch.setattr(tables, "WORTH", 1)
    expected = from_rows(rows)
    found = from_files([written(tmp_path, rows)], None)
    assert found.features == expected.features
    assert found.column_names == expected.column_names
    assert found.to_list() == expected.to_list()


PLAIN = [{"a": f"text {i}", "n": i} for i in range(200)]
LINES = "".join(json.dumps(row) + "\n" for row in PLAIN)


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.rstrip(),
        "\n\n" + LINES.replace("\n", "\r\n\n") + "\n" * 99,
        "\ufeff" + LINES,
        json.dumps(PLAIN),
        json.dumps(PLAIN, indent=1),
        json.dumps({"data": PLAIN}),
        json.dumps({"rows": PLAIN}, indent=1),
    ],
    ids=["lines", "no end", "blank lines", "a mark", "array", "indented array", "object", "indented object"],
)
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_rows_are_the_same_however_a_file_is_cut(
    content: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_PIECE", size)
    monkeypatch.setattr(tables, "WORTH", 1)
    path = tmp_path / "rows.json"
    path.write_bytes(content.encode())
    assert from_files([path], None).to_list() == PLAIN


def test_several_files_are_read_in_pieces_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_PIECE", 300)
    paths = [written(tmp_path, PLAIN[:120], "b.jsonl"), written(tmp_path, PLAIN[120:], "a.jsonl")]
    (tmp_path / "rows.csv").write_text("a,n\nx,1\ny,2\n")
    found = tables._in_pieces(paths, 3)
    assert found is not None
    assert found.to_list() == PLAIN
    assert line_pieces(tmp_path / "rows.csv", 300) is None
    assert tables._in_pieces([*paths, written(tmp_path, PLAIN[:1], "c.jsonl")], 3) is None  # it may stand for more
    assert tables._in_pieces([*paths, tmp_path / "rows.csv"], 3) is None
    assert tables._in_pieces([tmp_path / "nothing.jsonl"], 3) is None
    monkeypatch.setattr(tables, "WORTH", 1)
    monkeypatch.delattr(tables, "_read")  # not needed
    assert from_files(paths, None).to_list() == PLAIN


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"a": ', r"rows\.jsonl:151: not valid JSON"),
        ("[1]", r"rows\.jsonl:151: holds a list"),
        (b"\xff", r"rows\.jsonl:151: not UTF-8"),
        ('{"a": "\\ud83d"}', r"rows\.jsonl:151: holds half of a surrogate pair"),
        ('{"a": "' + "x" * 5000 + '"}', r"rows\.jsonl:151: the row has more than"),
    ],
)
@pytest.mark.parametrize("size", [300, 1 << 20])
def test_what_is_wrong_in_a_piece_is_said_with_its_line(
    line: Any, expected: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_PIECE", size)
    monkeypatch.setattr(tables, "WORTH", 1)
    monkeypatch.setattr("align.data.rows.files.ROW", 4096)
    lines = LINES.encode().splitlines(keepends=True)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join([*lines[:150], line if isinstance(line, bytes) else line.encode(), b"\n", *lines[150:]]))
    with pytest.raises(UserError, match=expected):
        from_files([path], None)


def test_large_files_are_read_once_and_again_when_a_character_changes(
    tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "WORTH", 1)
    rows = [{"a": f"text {i}"} for i in range(5)]
    path = written(tmp_path, rows)

    def entries() -> int:
        return len([entry for entry in own_folder.iterdir() if entry.is_dir()])

    for place in (path, written(tmp_path, rows, "moved.jsonl")):  # the name of the file does not matter
        assert from_files([place], None).to_list() == rows
        assert entries() == 1
    assert from_files([written(tmp_path, [*rows[:4], {"a": "text 5"}])], None)[4] == {"a": "text 5"}
    assert entries() == 2
    assert from_files([path], 2).to_list() == rows[:2]  # a beginning is read and not kept
    assert entries() == 2
    path.write_text(path.read_text() + '{"a": \n')
    with pytest.raises(UserError, match=r"rows.jsonl:6: not valid JSON"):
        from_files([path], None)
