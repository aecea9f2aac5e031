"""Rows to forget and rows to retain, from a recipe's data section to token ids."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from align.data.rows.files import file_kind
from align.data.rows.mixture import random_words
from align.data.rows.sources import column_names, did_you_mean, is_table
from align.data.tokens.chunks import continued
from align.data.tokens.preparation import plural
from align.data.tokens.refusals import REFUSALS
from align.data.tokens.tokenize import prepare
from align.errors import UserError
from align.outside.files import parsed, read_text
from align.outside.limits import TEXTS

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    from align.recipe.sections import Alternates

    AnyDataset = Dataset | IterableDataset

_DRAW = 3  # keeps the draw of alternates apart from others


def forget_rows(
    rows: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    alternate: bool,
    texts: Sequence[str] | None = None,
    each: int = 1,
    seed: int = 0,
    say: Callable[[str], Any] = print,
    **limits: Any,
) -> tuple[Dataset, int]:
    """Prepare rows to forget; returns them, each as many times in succession as the second value says.

    ``rows`` are raw rows of any format with one answer, or prepared ones (``prompt_ids``, ``forget_ids``). With
    ``alternate`` each also gets other answers to its prompt: ``each`` of ``texts``, drawn without replacement by
    (seed, row), or those of its own column ``alternate`` (a text) or ``alternates`` (a list of texts). Plain texts have
    no prompt; see ``continued`` for what stands for it. ``limits`` are those of ``prepare``.

    Raises ``UserError`` where there are no alternates or no row can be used.
    """
    rows = _table(rows, "forget")
    if "forget_ids" in rows.column_names:
        _check_prepared(rows, alternate, each)
        return rows, each
    if not alternate:
        prepared = _prepared(rows, tokenizer, ("completion",), say, **limits)
        return _renamed(prepared, "forget"), 1
    if texts is not None and is_plain(rows):
        prepared = _renamed(_prepared(rows, tokenizer, ("completion",), say, **limits), "forget")
        chosen = _chosen(texts, len(prepared), min(each, len(texts)), seed)
        return continued(prepared, tokenizer, chosen, limits.get("max_length"), say), min(each, len(texts))
    rows, each = with_alternates(rows, texts, each, seed)
    if each > 1:
        say(f"each of {len(rows) // each:,} rows comes with {each} alternate answers, another one every epoch")
    prepared = _prepared(rows, tokenizer, ("completion", "alternate"), say, **limits)
    return _renamed(_whole(prepared, each, say), "forget"), each


def retain_rows(
    rows: AnyDataset, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], Any], **limits: Any
) -> Dataset:
    """Prepare rows to retain: columns ``prompt_ids``, ``retain_ids`` and, where needed, ``retain_mask``."""
    rows = _table(rows, "retain")
    if "retain_ids" in rows.column_names:
        return rows
    return _renamed(_prepared(rows, tokenizer, ("completion",), say, **limits), "retain")


def _check_prepared(rows: Dataset, alternate: bool, each: int) -> None:
    if alternate and "alternate_ids" not in rows.column_names:
        raise UserError("The objective reads alternate answers, but the prepared rows have no column alternate_ids.")
    if len(rows) % each:
        raise UserError(f"{len(rows):,} prepared rows cannot hold each row to forget {each} times in succession.")


def is_plain(rows: Dataset) -> bool:
    """Whether rows are texts without a prompt."""
    names = set(rows.column_names)
    return "text" in names and not {"prompt", "question", "messages", "conversations"} & names


def _table(rows: AnyDataset, what: str) -> Dataset:
    if not is_table(rows):
        raise UserError(f"Rows to {what} cannot be streamed: pairs are drawn from all of them. Give them as a Dataset.")
    return rows


def alternate_texts(settings: Alternates, base: Path) -> list[str] | None:
    """The answers that a recipe names, or None where they are the rows' own. Raises ``UserError``."""
    if settings.builtin is not None:
        return list(REFUSALS)
    if settings.path is None:
        return None
    path = base / settings.path
    try:
        content = read_text(path, TEXTS, "utf-8-sig")
    except FileNotFoundError:
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"data.alternates.path: {path}: no such file.{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"data.alternates.path: {path} cannot be read as text ({why}).") from None
    tables = {".csv": ",", ".tsv": "\t"}
    kind = file_kind(path) or ""
    found = _cells(content, tables[kind], path) if kind in tables else _lines(content, path)
    texts = [text.strip() for text in found if text.strip()]
    if not texts:
        raise UserError(f"data.alternates.path: {path} holds no text; expected one answer a line.")
    return texts


def _cells(content: str, separator: str, path: Path) -> list[str]:
    """The one column of a table. A first row of one or two words that end in no stop is taken for its header."""
    try:
        rows = [row for row in csv.reader(io.StringIO(content, newline=""), delimiter=separator) if row]
    except csv.Error as error:
        raise UserError(f"data.alternates.path: {path} is not valid CSV ({error}).") from None
    for number, row in enumerate(rows, start=1):
        if len(row) > 1:
            raise UserError(
                f"data.alternates.path: row {number} of {path} has {len(row)} columns; expected one. Quote an answer "
                "that holds the separator."
            )
    head = rows[0][0].strip() if rows else ""
    titled = len(head.split()) <= 2 and head[-1:] not in (".", "!", "?")
    return [row[0] for row in rows[titled:]]


def _lines(content: str, path: Path) -> list[str]:
    """Texts of a JSON array, else of lines, each a text as it stands or JSON that holds one."""
    try:
        whole = parsed(content)
    except ValueError:
        whole = None
    if isinstance(whole, list):
        return [_one(value, f"element {number} of {path}") for number, value in enumerate(whole)]
    lines = content.split("\n")  # and no other sign that ends a line elsewhere: JSON may hold those
    return [_line(line.strip(), f"line {number} of {path}") for number, line in enumerate(lines, start=1)]


def _line(line: str, where: str) -> str:
    if not line.startswith(("{", "[", '"')):
        return line
    try:
        value = parsed(line)
    except ValueError:
        if line.startswith("{"):
            raise UserError(f"data.alternates.path: {where} is not valid JSON.") from None
        return line  # a text that begins so
    return _one(value, where)


def _one(value: Any, where: str) -> str:
    """The one text of a JSON value."""
    values = list(value.values()) if isinstance(value, dict) else [value]
    if len(values) != 1 or not isinstance(values[0], str):
        raise UserError(f"data.alternates.path: {where} must hold one text.")
    return values[0]


def with_alternates(rows: Dataset, texts: Sequence[str] | None, each: int, seed: int) -> tuple[Dataset, int]:
    """Every raw row once for each of its alternates, with that one in the column ``alternate``; and how often.

    Raises ``UserError`` where ``texts`` is None and the rows have no alternates of their own.
    """
    names = column_names(rows)
    if texts is not None:
        each = min(each, len(texts))
        answers = [text for drawn in _chosen(texts, len(rows), each, seed) for text in drawn]
    elif "alternates" in names:
        answers, each = _listed(rows)
    elif "alternate" in names:
        return rows, 1
    else:
        raise UserError(
            "The objective reads alternate answers, but the rows to forget have neither a column alternate nor "
            f"alternates (columns: {', '.join(n for n in names if n != 'row')}). Add one, or set data.alternates, for "
            "instance to {builtin: idk}."
        )
    if "row" not in names:  # by which copies are told apart
        rows = rows.add_column("row", list(range(len(rows))))
    repeated = rows.select(np.repeat(np.arange(len(rows)), each))
    if texts is not None and "prompt" in names and "completion" in names:
        answers = [_spaced(text, own) for text, own in zip(answers, repeated["completion"][:], strict=True)]
    kept = repeated.remove_columns([name for name in ("alternate", "alternates") if name in names])
    return kept.add_column("alternate", answers), each


def _chosen(texts: Sequence[str], count: int, each: int, seed: int) -> list[list[str]]:
    """``each`` different texts for every one of ``count`` rows, by (seed, row)."""
    words = (random_words(len(texts), seed, _DRAW, row) for row in range(count))
    return [[texts[i] for i in np.argsort(drawn, kind="stable")[:each]] for drawn in words]


def _spaced(text: str, own: Any) -> str:
    """The text with the white space in front that the row's own answer has, since texts are joined as they are."""
    return own[: len(own) - len(own.lstrip())] + text if isinstance(own, str) else text


def _listed(rows: Dataset) -> tuple[list[str], int]:
    lists = rows["alternates"][:]
    each = len(lists[0] or ()) if lists else 0
    for row, texts in enumerate(lists):
        if not isinstance(texts, list) or len(texts) != each or not each or not all(isinstance(t, str) for t in texts):
            raise UserError(
                f"Row {row} of the rows to forget: alternates must be a list of {each or 'one or more'} texts, as many "
                "as in the first row."
            )
    return [text for texts in lists for text in texts], each


def _whole(prepared: Dataset, each: int, say: Callable[[str], Any]) -> Dataset:
    """Only rows of which every copy could be used."""
    if each == 1:
        return prepared
    numbers = np.asarray(prepared["row"][:])
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    complete = counts[inverse] == each
    if not complete.all():
        left = len(np.unique(numbers[~complete]))
        say(f"{plural(left, 'row')} left out because an alternate answer could not be used")
        if not complete.any():
            raise UserError("No row to forget is left: an alternate answer of each could not be used.")
    return prepared.select(np.flatnonzero(complete))


def _prepared(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    branches: tuple[str, ...],
    say: Callable[[str], Any],
    **limits: Any,
) -> Dataset:
    prepared, account = prepare(rows, tokenizer, branches, **limits)
    assert is_table(prepared)  # as `rows` is
    for sentence in account.summary():
        say(f"  {sentence}")
    return prepared


def _renamed(prepared: Dataset, branch: str) -> Dataset:
    """The branch ``completion`` under the name that objectives use."""
    columns = {"completion_ids": f"{branch}_ids", "completion_mask": f"{branch}_mask"}
    return prepared.rename_columns({old: new for old, new in columns.items() if old in prepared.column_names})
