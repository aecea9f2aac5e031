"""Rows from local files: JSON, JSON lines, CSV, TSV and Parquet, each also gzipped. Every error names file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from align.errors import UserError

Row = dict[str, Any]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_ARRAY_KEYS = ("data", "rows", "instances", "examples", "train")
_CSV_FIELD_LIMIT = 2**31 - 1  # the standard library's 128 KiB is shorter than many an answer


def file_kind(path: Path) -> str | None:
    """The suffix that decides how a file is read, without ``.gz``; None where we cannot read it."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def file_stem(path: Path) -> str:
    """The name of a data file without its suffixes: ``train-00000-of-00002`` of ``train-00000-of-00002.jsonl.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return name.removesuffix(file_kind(path) or "")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of one file in order, lazily where the format allows it.

    Raises ``UserError`` naming file and line where the file cannot be read, is not what its name says, holds a row
    that is no object, or holds no row at all.
    """
    kind = file_kind(path)
    if kind is None:
        raise UserError(
            f"{path}: cannot tell the format from the name; expected one of {', '.join(SUFFIXES)} (or .gz)."
        )
    reader = {".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows}.get(kind, _json_rows)
    count = 0
    try:
        with _open(path) as stream:
            for row in reader(path, stream):
                count += 1
                yield row
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(
            f"{path}: broken gzip data after {count} rows ({error}); fetch or compress the file again."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if count == 0:
        raise UserError(f"{path}: holds no rows; expected at least one.")


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: not UTF-8 text (byte {error.start} of the line); convert the file to UTF-8."
        ) from None
    return text.removeprefix("\ufeff") if number == 1 else text


def _json_rows(path: Path, stream: BinaryIO) -> Iterator[Row]:
    """JSON lines, or one array of objects; a ``.json`` file may be either (TOFU's files are JSON lines)."""
    alone: Row | None = None  # the first row, held back until we know whether it is the whole file
    count = number = 0
    for line in stream:
        number += 1
        text = _decode(path, number, line).strip()
        if not text:
            continue
        count += 1
        if count == 1 and text.startswith("["):
            yield from _json_array(path, number, text + "\n", stream)
            return
        if count == 1 and text.startswith("{") and not _is_json(text):
            whole = text + "\n" + stream.read().decode("utf-8", "replace")
            if _is_json(whole):
                yield from _json_object(path, json.loads(whole))
                return
        row = _json_line(path, number, text)
        if count == 1:
            alone = row
            continue
        if alone is not None:
            yield alone
            alone = None
        yield row
    if alone is not None:
        yield from _json_object(path, alone)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json_line(path: Path, number: int, text: str) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number}: not valid JSON at column {error.colno} ({error.msg}); expected one JSON object per line."
        ) from None
    return _checked(path, f"{path}:{number}", row, escapes="\\u" in text)


def _json_array(path: Path, number: int, head: str, stream: BinaryIO) -> Iterator[Row]:
    lines = [head]
    for offset, line in enumerate(stream, start=number + 1):
        lines.append(_decode(path, offset, line))
    try:
        rows = json.loads("".join(lines))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number - 1 + error.lineno}: not valid JSON at column {error.colno} ({error.msg}); "
            "expected an array of objects."
        ) from None
    for index, row in enumerate(rows):
        yield _checked(path, f"{path}: element {index}", row)


def _json_object(path: Path, document: Any) -> Iterator[Row]:
    """A single JSON object: rows under one well-known key, or one row written over several lines."""
    if isinstance(document, dict) and len(document) == 1:
        ((key, value),) = document.items()
        if key in _ARRAY_KEYS and isinstance(value, list):
            for index, row in enumerate(value):
                yield _checked(path, f"{path}: element {index} of {key!r}", row)
            return
    yield _checked(path, f"{path}:1", document)


def _checked(path: Path, where: str, row: Any, *, escapes: bool = True) -> Row:
    """The row, if it is one. Only text with ``escapes`` can hold what is no character, once it is decoded."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: holds a {type(row).__name__}; expected an object with named columns.")
    if not escapes:
        return row
    try:
        # Arrow stores UTF-8 only; half a surrogate pair ("\ud83d") passes the JSON parser and fails much later.
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a surrogate pair, which is no character; mend or drop it.") from None
    return row


def _csv_rows(path: Path, stream: BinaryIO) -> Iterator[Row]:
    """Rows of a CSV or TSV file with a header line; every value is a string."""
    before = csv.field_size_limit(_CSV_FIELD_LIMIT)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, delimiter="\t" if file_kind(path) == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = fields
                _check_header(path, header)
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{path}:{reader.line_num}: has {len(fields)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}); quote fields that contain the separator."
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error}).") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}:{reader.line_num + 1}: not UTF-8 text; convert the file to UTF-8.") from None
    finally:
        csv.field_size_limit(before)
        text.detach()


def _check_header(path: Path, header: list[str]) -> None:
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled or "" in header:
        wrong = f"names {', '.join(doubled)} twice" if doubled else "has a column without a name"
        raise UserError(f"{path}:1: the header {wrong}; every column needs a name of its own.")


def _parquet_rows(path: Path, stream: BinaryIO) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Parquet reads from the end, which a gzip stream cannot do.
    source = io.BytesIO(stream.read()) if path.name.lower().endswith(".gz") else stream
    try:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from None
