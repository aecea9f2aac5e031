"""Columns of token ids row by row, without a Python list of any."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_AT_ONCE = 4096  # rows


class Lists:
    """A column of lists of integers: ``lists[i]`` is int64 [n] without a copy, empty where the row has none."""

    def __init__(self, chunk: pa.Table, name: str) -> None:
        column = chunk[name].combine_chunks().cast(pa.list_(pa.int64()))  # also of a column without any value
        self.values = np.asarray(pc.list_flatten(column))
        self.missing = np.asarray(pc.is_null(column))
        stops = np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(column), 0), dtype=np.int64)).tolist()
        self.bounds = list(zip([0, *stops], stops, strict=False))

    def __getitem__(self, row: int) -> np.ndarray:
        start, stop = self.bounds[row]
        return self.values[start:stop]

    def or_else(self, other: Lists) -> Any:
        """The lists of another column where a row has none here."""
        return [other[i] if self.missing[i] else self[i] for i in range(len(self.bounds))]


def row_digests(dataset: Any, columns: Sequence[str]) -> Iterator[bytes]:
    """For each row 16 bytes that name what ``columns`` of it hold, in order; a list that is missing is an empty one."""
    for chunk in dataset.select_columns(list(columns)).with_format("arrow").iter(_AT_ONCE):
        lists = [Lists(chunk, name) for name in columns]
        for row in range(len(chunk)):
            hasher = hashlib.blake2b(digest_size=16)
            for values in (column[row] for column in lists):
                hasher.update(len(values).to_bytes(8, "little"))
                hasher.update(values.data)
            yield hasher.digest()
