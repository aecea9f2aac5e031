"""What came of the rounds of a run, one line for each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.stats import finite

COLUMNS = ("round", "pairs", "dropped", "score", "alike", "tokens", "cut", "bias", "loss", "accuracy")


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each round, under a line of names."""
    rows = [COLUMNS, *(cells(record) for record in records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The values of a round in the order of ``COLUMNS``; a dash where there is no number."""
    prompts, pairs = finite(record.get("prompts")), finite(record.get("pairs"))
    bias, loss = finite(record.get("position_bias")), record.get("loss")
    ends = [finite(value) for value in loss] if isinstance(loss, list) else []
    return (
        str(record["round"]),
        _cell(pairs, ",.0f"),
        _cell(None if prompts is None or pairs is None else prompts - pairs, ",.0f"),
        _cell(record.get("score"), ".4g"),
        _cell(record.get("similarity"), ".2f"),
        _cell(record.get("tokens"), ".1f"),
        _cell(record.get("truncated"), ".1%"),
        _cell(None if bias is None else round(bias, 3) + 0, "+.3f"),  # no minus before a zero
        "-" if len(ends) != 2 else " to ".join(_cell(value, ".4g") for value in ends),
        _cell(record.get("accuracy"), ".3f"),
    )


def _cell(value: Any, form: str) -> str:
    number = finite(value)
    return "-" if number is None else format(number, form)
