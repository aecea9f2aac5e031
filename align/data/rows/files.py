"""Rows from local files: JSON, JSON lines, CSV, TSV and Parquet, each also gzipped. Every error names file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, AnyStr, BinaryIO

from align.data.rows.parquet import parquet_rows
from align.errors import UserError
from align.outside.files import Refused, long_number, opened, parsed, unpacked
from align.outside.limits import ARRAY, MIB, ROW

Row = dict[str, Any]

_LINES = (".json", ".jsonl", ".ndjson")
SUFFIXES = (*_LINES, ".csv", ".tsv", ".parquet")
USUAL_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_ARRAY_KEYS = ("data", "rows", "instances", "examples", "train")


def file_kind(path: Path) -> str | None:
    """The suffix that decides how a file is read, without ``.gz``; None where we cannot read it."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def file_stem(path: Path) -> str:
    """The name of a data file without its suffixes: ``train-00000-of-00002`` of ``train-00000-of-00002.jsonl.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return name.removesuffix(file_kind(path) or "")


def split_of(file: Path) -> str:
    """``train`` of ``train-00000-of-00002.parquet`` and of ``train.jsonl``."""
    stem = file_stem(file)
    head, dash, tail = stem.partition("-")
    return head if dash and tail.replace("-of-", "").replace("-", "").isdigit() else stem


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
    reader = {".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": parquet_rows}.get(kind, _json_rows)
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


def line_pieces(path: Path, size: int) -> list[range] | None:
    """Pieces of about ``size`` bytes of a file of JSON lines, each of whole lines, as the bytes that they are.

    None for a file of another kind, and where it cannot be read: ``read_rows`` says why.
    """
    if path.suffix.lower() not in _LINES:
        return None
    pieces: list[range] = []
    try:
        with opened(path) as stream:
            end = stream.seek(0, io.SEEK_END)
            while (start := pieces[-1].stop if pieces else 0) < end:
                stream.seek(start + size)
                stream.readline(ROW)
                pieces.append(range(start, stream.tell()))
    except OSError:
        return None
    return pieces


def read_piece(path: Path, piece: range) -> list[Row]:
    """The rows of a piece of a file of JSON lines.

    Raises ``UserError`` where it holds anything but rows; ``read_rows`` knows in which line, and what it may be.
    """
    with opened(path) as stream:
        stream.seek(piece.start)
        lines = stream.read(len(piece)).split(b"\n")
    if any(len(line) >= ROW for line in lines):
        raise UserError(f"{path}: a row is too long.")
    texts = (_decode(path, 0, line).strip() for line in lines)
    return [_json_line(path, 0, text) for text in texts if text]


def _open(path: Path) -> BinaryIO:
    return unpacked(path) if path.name.lower().endswith(".gz") else opened(path)


def _lines(path: Path, read: Callable[[int], AnyStr]) -> Iterator[AnyStr]:
    """Lines of a file with their ends; ``read`` reads one of so many characters at most. Raises UserError."""
    number = 0
    while line := read(ROW + 1):
        number += 1
        if len(line) > ROW:
            raise UserError(f"{path}:{number}: the row has more than {ROW // MIB} MiB; split its text into rows.")
        yield line


def _whole(path: Path, stream: BinaryIO) -> bytes:
    """The rest of a file that is no JSON lines."""
    content = stream.read(ARRAY + 1)
    if len(content) > ARRAY:
        raise Refused(path, f"it is no JSON lines, and at most {ARRAY:,} bytes of other JSON are read")
    return content


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
    for line in _lines(path, stream.readline):
        number += 1
        text = _decode(path, number, line).strip()
        if not text:
            continue
        count += 1
        if count == 1 and text.startswith("["):
            yield from _json_array(path, number, text + "\n", stream)
            return
        if count == 1 and text.startswith("{") and not _is_json(text):
            whole = text + "\n" + _whole(path, stream).decode("utf-8", "replace")
            if _is_json(whole):
                yield from _json_object(path, parsed(whole))
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
        parsed(text)
    except ValueError:
        return False
    return True


def _json_line(path: Path, number: int, text: str) -> Row:
    try:
        row = parsed(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number}: not valid JSON at column {error.colno} ({error.msg}); expected one JSON object per line."
        ) from None
    except ValueError as error:
        raise _not_read(f"{path}:{number}", error) from None
    return _checked(f"{path}:{number}", row, text)


def _not_read(where: str, error: ValueError) -> UserError:
    """A JSON text that Python does not read though its grammar is right."""
    return UserError(f"{where}: cannot be read ({error}); give plain columns of text, or lists of messages.")


def _json_array(path: Path, number: int, head: str, stream: BinaryIO) -> Iterator[Row]:
    rest = io.BytesIO(_whole(path, stream))
    text = head + "".join(_decode(path, offset, line) for offset, line in enumerate(rest, start=number + 1))
    try:
        rows = parsed(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number - 1 + error.lineno}: not valid JSON at column {error.colno} ({error.msg}); "
            "expected an array of objects."
        ) from None
    except ValueError as error:
        raise _not_read(str(path), error) from None
    for index, row in enumerate(rows):
        yield _checked(f"{path}: element {index}", row)


def _json_object(path: Path, document: Any) -> Iterator[Row]:
    """A single JSON object: rows under one well-known key, or one row written over several lines."""
    if isinstance(document, dict) and len(document) == 1:
        ((key, value),) = document.items()
        if key in _ARRAY_KEYS and isinstance(value, list):
            for index, row in enumerate(value):
                yield _checked(f"{path}: element {index} of {key!r}", row)
            return
    yield _checked(f"{path}:1", document)


def _checked(where: str, row: Any, text: str | None = None) -> Row:
    """The row, if it is one; ``text`` is what it was parsed from, where that is at hand."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: holds a {type(row).__name__}; expected an object with named columns.")
    if (number := long_number(text, row)) is not None:
        raise UserError(
            f"{where}: holds the whole number {str(number)[:30]}, which needs more than 64 bits; write it as text, in "
            "quotes."
        )
    if text is not None and "\\u" not in text:  # without escapes nothing can be half a character
        return row
    try:
        # Arrow stores UTF-8 only; half a surrogate pair ("\ud83d") passes the JSON parser and fails much later.
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a surrogate pair, which is no character; mend or drop it.") from None
    return row


def _csv_rows(path: Path, stream: BinaryIO) -> Iterator[Row]:
    """Rows of a CSV or TSV file with a header line; every value is a string."""
    before = csv.field_size_limit(ROW)  # the standard library's 128 KiB is shorter than many an answer
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    reader = csv.reader(_lines(path, text.readline), delimiter="\t" if file_kind(path) == ".tsv" else ",", strict=True)
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
