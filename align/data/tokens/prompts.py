"""Prompts to be answered, from rows of any format; answers that rows have are left aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from align.data.rows.questions import asked
from align.data.rows.values import BadRow, with_system
from align.data.tokens.tokenize import prepare, recognise_dataset

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def prompt_rows(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], Any] = print, **limits: Any
) -> Dataset:
    """Prompts as text and as token ids: columns ``row``, ``prompt_ids`` and ``prompt``, which is JSON (``prompt_of``).

    ``prompt_ids`` end where an answer starts: behind a text, or behind the template's header of an assistant's turn.
    ``limits`` are those of ``prepare``. Prepared rows are returned as they are. Numbers in a column ``row`` of the rows
    themselves are taken where no two are alike, since draws, scores and pairs go by them; else rows are counted.

    Raises ``UserError`` where the format is not recognised or no row is left.
    """
    if "row" in rows.column_names and len(set(rows["row"][:])) < len(rows):
        rows = rows.remove_columns("row")
    if {"prompt", "prompt_ids"} <= set(rows.column_names):
        return rows if "row" in rows.column_names else rows.add_column("row", range(len(rows)))
    account: Any
    prepared: Any
    prepared, account = prepare(rows, tokenizer, (), **limits)
    for sentence in account.summary():
        say(f"  {sentence}")
    raw: Any = asked(rows, tokenizer, ())
    form = recognise_dataset(raw, ())
    numbers = raw["row"][:] if "row" in raw.column_names else range(len(raw))
    place = {number: index for index, number in enumerate(numbers)}
    system = limits.get("system")
    texts = [_text(form.canonical(raw[place[number]])["prompt"], system) for number in prepared["row"][:]]
    return prepared.add_column("prompt", texts)


def conversational(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the prompts of rows are conversations, as ``prompt_rows`` gives them. Raises ``UserError`` like it."""
    if {"prompt", "prompt_ids"} <= set(rows.column_names):
        return not isinstance(prompt_of(rows[0]["prompt"]), str)
    raw: Any = asked(rows, tokenizer, ())
    return recognise_dataset(raw, ()).conversational


def prompt_of(text: str) -> str | list[dict[str, str]]:
    """The prompt behind the column ``prompt``: a text, or messages."""
    return json.loads(text)


def _text(prompt: Any, system: str | None) -> str:
    assert not isinstance(prompt, BadRow)
    return json.dumps(prompt if system is None else with_system(prompt, system), ensure_ascii=False)
