"""Samples on disk: parquet tables of one layout, whether a step, a round or a verb made them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.data.tokens.samples import Sample
from align.errors import UserError
from align.runs.files import write_atomically

Rows = list[dict[str, Any]]

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),  # optimizer step, or round
        ("row", pa.int64()),  # of the prompts
        ("prompt", pa.string()),  # JSON: a text or messages
        ("prompt_ids", pa.list_(pa.int32())),
        ("index", pa.int32()),
        ("text", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("finish", pa.string()),
        ("score", pa.float64()),  # null where nothing scored it
        ("selected", pa.string()),  # chosen, rejected, kept, or empty
    ]
)


def sample_row(step: int, prompt: Mapping[str, Any], sample: Sample, **more: Any) -> dict[str, Any]:
    """One line of a table; ``prompt`` has ``row``, ``prompt`` and ``prompt_ids``, ``more`` score and selected."""
    return {
        "step": step,
        "row": int(prompt["row"]),
        "prompt": prompt.get("prompt"),
        "prompt_ids": list(prompt["prompt_ids"]),
        "index": sample.index,
        "text": sample.text,
        "ids": list(sample.ids),
        "finish": sample.finish,
        "score": None,
        "selected": "",
        **more,
    }


def sample_of(row: Mapping[str, Any]) -> Sample:
    """The sample in a line of a table."""
    return Sample(row["index"], tuple(row["ids"]), row["text"], row["finish"])


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema = SCHEMA) -> None:
    """Write lines as parquet, all of them or nothing."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), buffer)
    write_atomically(path, buffer.getvalue())


def read_tables(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Lines of several files in the order given. Raises ``UserError`` naming a file that cannot be read."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            first = str(error).split("\n")[0]
            raise UserError(f"{path} cannot be read as parquet ({first}); remove it and it is made again.") from error
    return rows


def by_prompt(lines: Sequence[dict[str, Any]]) -> Iterator[Rows]:
    """Lines of each prompt, which stand together; a sample of index 0 begins the next one."""
    group: Rows = []
    for line in lines:
        if line["index"] == 0 and group:
            yield group
            group = []
        group.append(line)
    if group:
        yield group
