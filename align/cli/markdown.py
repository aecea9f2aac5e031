"""Tables of the pages that ``make docs`` writes."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, code: bool = True) -> str:
    """A Markdown table; with ``code`` the first cell of each row is set as code."""

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    marked = [(f"`{row[0]}`", *row[1:]) for row in rows] if code else rows
    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, marked)]) + "\n"
