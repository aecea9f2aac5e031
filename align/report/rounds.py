"""What came of the rounds of a run, one line for each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("round", "pairs", "dropped", "score", "alike", "tokens", "cut", "bias", "loss", "accuracy")


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each round, under a line of names."""
    rows = [COLUMNS, *(cells(record) for record in records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The values of a round in the order of ``COLUMNS``; a dash where there is none."""
    score, bias, loss, accuracy = (record[key] for key in ("score", "position_bias", "loss", "accuracy"))
    alike = record["similarity"]
    return (
        str(record["round"]),
        f"{record['pairs']:,}",
        f"{record['prompts'] - record['pairs']:,}",
        "-" if score is None else f"{score:.4g}",
        "-" if alike is None else f"{alike:.2f}",
        f"{record['tokens']:.1f}",
        f"{record['truncated']:.1%}",
        "-" if bias is None else f"{round(bias, 3) + 0:+.3f}",  # no minus before a zero
        "-" if loss is None else f"{loss[0]:.4g} to {loss[1]:.4g}",
        "-" if accuracy is None else f"{accuracy:.3f}",
    )
