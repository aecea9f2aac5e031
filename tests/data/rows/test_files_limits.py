"""Rows that are too much: refused by their bytes, before anybody makes tokens of them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.data.rows.files import read_rows
from align.errors import UserError
from align.outside.limits import MIB, ROW

ROWS = '{"prompt": "a", "chosen": "b"}\n'


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    return str(error.value).removeprefix(str(path))


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.jsonl.gz"])
def test_a_row_of_more_than_4_mib(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    text = (os.urandom(ROW // 2 + 1).hex() if name.endswith(".gz") else "a" * (ROW + 1)) + "\n"
    text = "prompt\n" + text if "csv" in name else ROWS + text
    path.write_bytes(gzip.compress(text.encode(), 1) if name.endswith(".gz") else text.encode())
    assert refused(path) == ":2: the row has more than 4 MiB; split its text into rows."


def test_nesting_and_long_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(ROWS + '{"a": ' + "[" * 900 + "]" * 900 + "}\n")
    assert refused(path) == (
        ":2: cannot be read (it is nested more than 64 levels deep); give plain columns of text, or lists of messages."
    )
    path.write_text(ROWS + f'{{"a": {2**64}}}\n')
    assert refused(path) == (
        ":2: holds the whole number 18446744073709551616, which needs more than 64 bits; write it as text, in quotes."
    )
    path = tmp_path / "x.json"
    path.write_text(f'[{{"a": 1}},\n{{"a": {2**64}}}]')
    assert refused(path).startswith(": element 1: holds the whole number 18446744073709551616")


def test_one_text_in_very_many_rows_of_a_parquet_file(tmp_path: Path) -> None:
    """A dictionary holds a text once; its rows would be 15 GB here."""
    path = tmp_path / "x.parquet"
    text = pa.array(["a" * 3 * MIB])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), text)
    pq.write_table(pa.table({"prompt": column}), path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < MIB
    assert refused(path) == (
        ": cannot be read (it unpacks to more than 8,388,608 bytes, over 100 times its size, as no rows do; if you "
        "made it yourself, unpack it)."
    )


def test_a_parquet_row_of_more_than_4_mib(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": [os.urandom(ROW // 2 + 1).hex()]}), path)
    assert refused(path) == ": a row has more than 4 MiB; split its text into rows."


def test_dictionaries_and_lists_of_them_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [{"chosen": [{"role": "user", "content": f"a{i % 3}"}], "n": i, "text": "same"} for i in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert list(read_rows(path)) == rows
