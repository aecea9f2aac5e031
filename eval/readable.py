"""Items that a judge can be asked about whole, and what is said of the others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from align.data.tokens.preparation import plural
from align.errors import UserError
from align.judges.judge import Judging

Asked = Sequence[tuple[Any, ...]]  # of one item: the arguments of every score, or of every comparison


def readable(judge: Judging, items: Sequence[Asked], what: str) -> list[int]:
    """The numbers of the items of which everything that is asked is short enough for the judge.

    An item goes as a whole: figures compare its answers with each other. Raises ``UserError`` where none is left.

    Args:
        what: what items are called, such as ``pair``.
    """
    rows = [row for asked in items for row in asked]
    columns: Any = zip(*rows, strict=True)
    fits = iter(judge.fits(*columns))
    kept = [number for number, asked in enumerate(items) if all(list(islice(fits, len(asked))))]
    if not kept:
        raise UserError(f"Nothing is left: {too_long(judge, len(items), what)}. Give shorter ones.")
    return kept


def too_long(judge: Judging, count: int, what: str) -> str:
    """What is said of items that were left out."""
    return f"{plural(count, what)} left out: more tokens than {judge.name} reads"
