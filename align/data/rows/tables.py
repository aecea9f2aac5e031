"""Tables of raw rows, made of Python rows or read from files a few thousand rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.rows.cache import WORTH, Made, as_dataset, file_digest, kept, key_of, made_of
from align.data.rows.files import file_kind, line_pieces, read_piece, read_rows
from align.errors import UserError
from align.runs.parallel import cores, in_order

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

_AT_ONCE = 4096  # rows that are Python objects at the same time
_PIECE = 1 << 20  # bytes of JSON lines that a process reads at a time


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

    Large files that are wanted whole are read once, on all cores where they are JSON lines, and kept (see ``cache``) by
    their content.

    Raises ``UserError`` where a file cannot be read or the rows form no table.
    """
    try:
        large = rows is None and sum(file.stat().st_size for file in files) >= WORTH
        key = key_of("rows", [[file_kind(file), file.suffix, file_digest(file)] for file in files]) if large else ""
    except OSError:  # said when they are read
        key = ""
    if not key:
        return _read(files, rows)

    def make(alone: bool) -> Made:
        whole = _in_pieces(files, cores(shared=not alone))
        return made_of(_read(files, None) if whole is None else whole, {})

    return as_dataset(kept(key, make))


def rows_of(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The rows of files one after the other, lazily."""
    for file in files:
        yield from read_rows(Path(file))


def _read(files: Sequence[Path], rows: int | None) -> Dataset:
    """Rows read one after the other."""
    try:
        whole = _together(_chunks(islice(rows_of(files), rows)))
        # values of one column have types that only a look at all of them brings together
        return from_rows(list(islice(rows_of(files), rows))) if whole is None else whole
    except (TypeError, ValueError) as error:
        named = " and ".join(str(file) for file in files[:2])
        raise UserError(f"{named}: the rows do not form a table ({' '.join(str(error).split())}).") from None


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[pa.Table]:
    while found := list(islice(rows, _AT_ONCE)):
        yield made_of(from_rows(found), {}).table


def _in_pieces(files: Sequence[Path], processes: int) -> Dataset | None:
    """Rows read by several processes; None where not all files are lines of JSON objects, two of them at least.

    What is wrong with a file is found by reading one row after the other.
    """
    import pyarrow as pa

    places: list[tuple[Path, range]] = []
    for file in files:
        if (pieces := line_pieces(file, _PIECE)) is None:
            return None
        places += [(file, piece) for piece in pieces]
    counts: Counter[Path] = Counter()

    def work(number: int) -> bytes:
        table = made_of(from_rows(read_piece(*places[number])), {}).table
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    def tables() -> Iterator[pa.Table]:
        for (file, _), content in zip(places, in_order(work, len(places), processes), strict=True):
            table = pa.ipc.open_stream(content).read_all()
            counts[file] += len(table)
            yield table

    try:
        whole = _together(tables())
    except (UserError, OSError):
        return None
    return whole if all(counts[file] > 1 for file in files) else None


def _together(tables: Iterable[pa.Table]) -> Dataset | None:
    """One table, as ``from_rows`` makes it of all rows; None where its parts do not have the same types."""
    import pyarrow as pa
    from datasets import Features

    parts: list[pa.Table] = []
    features: Features | None = None
    try:
        for table in tables:
            own = Features.from_arrow_schema(table.schema)
            features = own if features is None else _of_both(features, own)
            if features is None:
                return None
            parts.append(table)
    except (TypeError, ValueError):
        return None
    if features is None:
        return from_rows([])
    schema = features.arrow_schema
    return as_dataset(Made(pa.concat_tables([_widened(part, schema) for part in parts]), {}))


def _of_both(left: Features, right: Features) -> Features | None:
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


def _widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A part with all columns, in order."""
    import pyarrow as pa

    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
