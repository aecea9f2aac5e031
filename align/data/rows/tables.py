"""Tables of raw rows, made of Python rows or read from files a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.rows.cache import WORTH, as_dataset, file_digest, kept, key_of, made_of
from align.data.rows.files import file_kind, read_rows
from align.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, Features

_AT_ONCE = 4096  # rows that are Python objects at the same time


def from_rows(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Rows in memory as a ``Dataset``: every column that any row has, values of mixed type kept as they are."""
    from datasets import Dataset

    names = {name: None for row in rows for name in row}
    listed: list[dict[str, Any]] = [dict(row) for row in rows]
    if listed:
        listed[0] = {**names, **listed[0]}  # `from_list` takes the columns of the first row
    return Dataset.from_list(listed, on_mixed_types="use_json")


def from_files(files: Sequence[Path], rows: int | None) -> Dataset:
    """The rows of files one after the other, or the first ``rows`` of them.

    Large files that are wanted whole are read once and kept (see ``cache``) by their content.

    Raises ``UserError`` where a file cannot be read or the rows form no table.
    """
    try:
        large = rows is None and sum(file.stat().st_size for file in files) >= WORTH
        key = key_of("rows", [[file_kind(file), file.suffix, file_digest(file)] for file in files]) if large else ""
    except OSError:  # said when they are read
        key = ""
    if not key:
        return _read(files, rows)
    return as_dataset(kept(key, lambda _: made_of(_read(files, None), {})))


def rows_of(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The rows of files one after the other, lazily."""
    for file in files:
        yield from read_rows(Path(file))


def _read(files: Sequence[Path], rows: int | None) -> Dataset:
    try:
        whole = _in_chunks(islice(rows_of(files), rows))
        # values of one column have types that only a look at all of them brings together
        return from_rows(list(islice(rows_of(files), rows))) if whole is None else whole
    except (TypeError, ValueError) as error:
        named = " and ".join(str(file) for file in files[:2])
        raise UserError(f"{named}: the rows do not form a table ({' '.join(str(error).split())}).") from None


def _in_chunks(rows: Iterator[dict[str, Any]]) -> Dataset | None:
    """A table of rows as ``from_rows`` makes it; None where chunks of it do not have the same types."""
    from datasets import concatenate_datasets

    chunks, features = [], None
    while found := list(islice(rows, _AT_ONCE)):
        try:
            chunk = from_rows(found)
        except (TypeError, ValueError):
            return None
        features = chunk.features if features is None else _together(features, chunk.features)
        if features is None:
            return None
        chunks.append(chunk)
    if features is None:
        return from_rows([])
    return concatenate_datasets([_widened(chunk, features) for chunk in chunks])


def _together(left: Features, right: Features) -> Features | None:
    """The columns of both; None where one has two types. A column without any value fits to all."""
    from datasets import Value

    nothing = Value("null")
    out: Any = left.copy()
    for name, kind in right.items():
        if out.get(name, nothing) == nothing:
            out[name] = kind
        elif kind not in (out[name], nothing):
            return None
    return out


def _widened(chunk: Dataset, features: Features) -> Dataset:
    """A chunk with all columns, in order."""
    import pyarrow as pa

    if chunk.features == features and chunk.column_names == list(features):
        return chunk
    schema = features.arrow_schema
    table = chunk.data.table
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    from datasets import Dataset

    return Dataset(pa.Table.from_arrays(columns, schema=schema))
