"""Rows of Parquet files. One text of a dictionary may stand in any number of rows, so sizes are asked for first."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from align.errors import UserError
from align.outside.files import may_unpack, too_packed
from align.outside.limits import MIB, NESTING, ROW

_AT_ONCE = 64 * MIB  # of rows that become Python values together
_BATCH = 1024  # rows
_PLACE = 8  # bytes that a value is counted with beside its text, so that rows of nothing have an end


def parquet_rows(path: Path, stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """The rows of a file, read from ``stream``. Raises ``UserError``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Parquet reads from the end, which a gzip stream cannot do
    source = io.BytesIO(stream.read()) if path.name.lower().endswith(".gz") else stream
    most, total = may_unpack(path.stat().st_size), 0
    try:
        schema = pq.ParquetFile(source).schema
        columns = [schema.column(i) for i in range(len(schema))]
        for column in columns:
            if column.path.count(".") > 2 * NESTING:  # a list is two levels of a path
                raise UserError(f"{path}: a column is nested more than {NESTING} levels deep; give plain columns.")
        # texts stay in their dictionary, so that no batch is larger than its pages
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        for batch in pq.ParquetFile(source, read_dictionary=texts).iter_batches(_BATCH):
            total += sum(_weight(column) for column in batch.columns)
            if total > most:
                raise too_packed(path, most)
            yield from _rows(path, batch)
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from None


def _rows(path: Path, batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of a batch, as few at a time as their size asks for."""
    weight = sum(_weight(column) for column in batch.columns)
    if len(batch) == 1 and weight > ROW:
        raise UserError(f"{path}: a row has more than {ROW // MIB} MiB; split its text into rows.")
    if len(batch) > 1 and weight > _AT_ONCE:
        half = len(batch) // 2
        yield from _rows(path, batch.slice(0, half))
        yield from _rows(path, batch.slice(half))
    else:
        yield from batch.to_pylist()


def _weight(array: Any) -> int:
    """About how many bytes the values of an array have, those of dictionaries as often as they stand there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, own = array.type, _PLACE * len(array)
    if pa.types.is_dictionary(kind):
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return own + (pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    if pa.types.is_map(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        flat = pc.list_flatten(array) if not pa.types.is_map(kind) else array.items
        return own + _weight(flat)
    if pa.types.is_struct(kind):
        return own + sum(_weight(part) for part in array.flatten())
    return own + array.nbytes
