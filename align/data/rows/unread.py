"""Columns of raw rows that a format never looks at, so that the model does not see them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from align.data.rows.formats import SYNONYMS, Format
from align.data.rows.values import BadRow

# names under which other tools keep a part of the prompt
_PROMPT_LIKE = {"system", "system_prompt", "history", "documents", "functions", *SYNONYMS["prompt"]} - {"user"}


class _Noted(dict):
    """A row that notes which of its columns are looked at."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As ``dict.get``."""
        self.read.add(name)
        return super().get(name, default)


def unread_columns(form: Format, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that the format reads in none of ``rows``, with a value in one that its canonical form does not repeat.

    ``row`` is ours (``load_source`` numbers rows by it) and does not count.
    """
    missed: dict[str, None] = {}
    read = {"row"}
    for row in map(_Noted, rows):
        canonical = None
        with suppress(BadRow):  # counted where the rows are prepared
            canonical = form.canonical(row)
        read |= row.read
        shown = json.dumps(canonical, default=str)
        for name, value in row.items():
            text = json.dumps(value, default=str).strip('"')
            if value not in (None, "", []) and text not in shown:
                missed[name] = None
    return [name for name in missed if name not in read]


def prompt_like(columns: Sequence[str]) -> list[str]:
    """Those of the columns whose names say that they belong to the prompt."""
    return [name for name in columns if name in _PROMPT_LIKE]
