"""Kept samples as a data set that any recipe reads: prompt with completion, or with chosen and rejected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.tokens.prompts import prompt_of
from align.data.tokens.samples import Sample
from align.errors import UserError
from align.runs.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIXES = (".jsonl", ".parquet")
_EXTRA = ("tools", "chat_template_kwargs")  # columns that change how a conversation is put into tokens

Line = Mapping[str, Any]  # of a table of samples


def extras(row: Line) -> dict[str, Any]:
    """What a raw row brings along that its prompt cannot be tokenised without."""
    return {name: row[name] for name in _EXTRA if row.get(name)}


def pair_row(chosen: Line, rejected: Line, extra: Line) -> dict[str, Any]:
    """A row of preferences, scores beside the texts where there are any."""
    row = {"prompt": prompt_of(chosen["prompt"]), **extra}
    for name, line in (("chosen", chosen), ("rejected", rejected)):
        row[name] = _reply(line)
        if line["score"] is not None:
            row[f"{name}_score"] = line["score"]
    return row


def completion_row(line: Line, extra: Line, *, scored: bool, whole: bool) -> dict[str, Any]:
    """A row with one completion; with ``whole`` also which sample it was and how it ended."""
    row = {"prompt": prompt_of(line["prompt"]), **extra, "completion": _reply(line)}
    if scored:
        row["score"] = line["score"]
    if whole:
        row |= {"index": line["index"], "finish": line["finish"]}
    return row


def _reply(line: Line) -> Any:
    """The text exactly as it was sampled, in the prompt's kind."""
    if isinstance(prompt_of(line["prompt"]), str):
        return line["text"]
    return [{"role": "assistant", "content": line["text"]}]


def check_name(out: Path) -> None:
    """Raises ``UserError`` for a file name that says no format we write."""
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: the name must end in {' or '.join(SUFFIXES)}, which says what is written.")


def write(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a data set whole. Raises ``UserError`` where parquet cannot hold the rows in one table."""
    if out.suffix == ".jsonl":
        write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    import pyarrow as pa

    from align.sampling.files import write_table

    try:
        names = dict.fromkeys(name for row in rows for name in row)
        full = [{name: row.get(name) for name in names} for row in rows]
        write_table(out, full, pa.Table.from_pylist(full).schema)
    except pa.ArrowException as error:
        first = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"--out {out}: the prompts do not form a table ({first}); name a .jsonl file.") from error


def tokenised_otherwise(
    rows: Sequence[Mapping[str, Any]],
    drawn: Sequence[Mapping[str, tuple[Sequence[int], Sample]]],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, dict[str, int]]:
    """How many rows a recipe's preparation turns into other tokens than were sampled, and what it drops, by reason.

    ``drawn`` has, for each row and branch, the ids of the prompt and the sample. What follows the sampled tokens (the
    end of the text, a template's line break) is no difference.
    """
    from align.data.rows.sources import from_rows
    from align.data.tokens.tokenize import prepare_rows

    branches = tuple(drawn[0])
    account: Any
    prepared: Any
    prepared, account = prepare_rows(from_rows(rows), tokenizer, branches)
    other = 0
    for found in prepared:
        other += any(
            not _same(found["prompt_ids"] + found[f"{name}_ids"], [*prompt, *_body(sample)], tokenizer)
            for name, (prompt, sample) in drawn[found["row"]].items()
        )
    return other, {reason: tally.count for reason, tally in account.dropped.items()}


def _body(sample: Sample) -> Sequence[int]:
    return sample.ids if sample.truncated else sample.ids[:-1]


def _same(found: list[int], sampled: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    rest = found[len(sampled) :]
    return found[: len(sampled)] == sampled and not tokenizer.decode(rest, skip_special_tokens=True).strip()
