"""Prepared rows with one labelled answer each: columns by label, and an answer to another prompt beside every row.

A row has its answer in ``desirable_ids`` or in ``undesirable_ids`` and null in the other, masks likewise. A pair
becomes two rows, all chosen answers before all rejected ones. ``mismatch_ids`` is the completion of the nearest row
before, in this order and going round, that has another prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from align.data.rows.lists import row_digests
from align.data.rows.sources import is_table
from align.data.tokens.preparation import Preparation
from align.errors import UserError
from align.objectives.base import MISMATCH

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

_SIDES = (("desirable", True), ("undesirable", False))


def refuse_stream(rows: Dataset | IterableDataset) -> None:
    """Raises ``UserError`` for rows that are streamed."""
    if not is_table(rows):
        raise UserError(
            "Labelled answers cannot be streamed: labels are counted, and answers are compared with those of other "
            "rows. Set rows: 10000 (or any number) in place of streaming."
        )


def by_label(prepared: Dataset, account: Preparation, branches: Sequence[str]) -> Dataset:
    """Prepared rows of completions with a label, or of pairs, as rows for an objective on ``branches``.

    Labels and cut mismatches are counted in ``account``. Raises ``UserError`` where a mismatch is wanted and all rows
    have one prompt.
    """
    if not len(prepared):
        return prepared
    table: Any = prepared.with_format("arrow")[:]
    if "chosen_ids" in table.column_names:
        table = _taken_apart(table)
    if MISMATCH in branches:
        table = _with_mismatch(table, account)
    labels = np.asarray(table["label"])
    account.labels = (int(labels.sum()), int((~labels).sum()))
    return _by_side(table)


def _taken_apart(pairs: pa.Table) -> pa.Table:
    """Two rows for each pair: chosen answers first, so that the row before a rejected answer has another prompt."""
    import pyarrow as pa

    parts = []
    for name, label in (("chosen", True), ("rejected", False)):
        columns = [column for column in (f"{name}_ids", f"{name}_mask") if column in pairs.column_names]
        part = pairs.select(["prompt_ids", *columns, "row"])
        part = part.rename_columns(["prompt_ids", *(c.replace(name, "completion") for c in columns), "row"])
        parts.append(part.append_column("label", pa.array(np.full(len(part), label))))
    return pa.concat_tables(parts)


def _with_mismatch(rows: pa.Table, account: Preparation) -> pa.Table:
    """Rows with the columns ``mismatch_ids`` and ``mismatch_mask``, cut so that they fit behind the prompt."""
    from datasets import Dataset

    lenders = rows_before(list(row_digests(Dataset(rows.select(["prompt_ids"])), ["prompt_ids"])))
    if lenders is None:
        raise UserError(
            "The objective compares every answer with one to another prompt, but all rows have the same prompt. Give "
            "rows with other prompts, or set form: apo_zero_unpaired."
        )
    names = [name for name in ("completion_ids", "completion_mask") if name in rows.column_names]
    lent = rows.select(names).take(lenders)
    for name in names:
        rows = rows.append_column(name.replace("completion", "mismatch"), lent[name])
    return rows if account.max_length is None else _fitted(rows, account, account.max_length)


def rows_before(prompts: Sequence[Any]) -> list[int] | None:
    """For each row the nearest one before it, going round, whose prompt differs; None where all prompts are equal."""
    found = [-1] * len(prompts)
    for place in range(2 * len(prompts)):  # a second round for rows at the start, whose lender is near the end
        row = place % len(prompts)
        before = (row - 1) % len(prompts)
        found[row] = before if prompts[before] != prompts[row] else found[before]
    return None if -1 in found else found


def _fitted(rows: pa.Table, account: Preparation, limit: int) -> pa.Table:
    """Rows whose prompt and mismatched answer have at most ``limit`` tokens together; the answer's end is cut off."""
    import pyarrow as pa
    import pyarrow.compute as pc

    room = limit - np.asarray(pc.list_value_length(rows["prompt_ids"]))
    long = np.flatnonzero(np.asarray(pc.list_value_length(rows["mismatch_ids"])) > room)
    numbers = rows["row"].take(long).to_pylist()
    for number in numbers:
        account.mismatch_cut.add(number)
    if not numbers:
        return rows
    names = [name for name in ("mismatch_ids", "mismatch_mask") if name in rows.column_names]
    cut = {name: rows[name].to_pylist() for name in names}
    for row in long.tolist():
        for name in names:
            cut[name][row] = cut[name][row][: room[row]]
        if "mismatch_mask" in cut and not any(cut["mismatch_mask"][row]):  # then what is left is scored
            cut["mismatch_mask"][row] = [1] * len(cut["mismatch_mask"][row])
    for name in names:
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(cut[name], rows[name].type))
    return rows


def _by_side(rows: pa.Table) -> Dataset:
    """Answers in the columns of their label, null in those of the other."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset

    columns: dict[str, Any] = {}
    for name in (name for name in rows.column_names if name != "label"):
        if not name.startswith("completion_"):
            columns[name] = rows[name]
            continue
        for side, label in _SIDES:
            mine = rows["label"] if label else pc.invert(rows["label"])
            columns[name.replace("completion", side)] = pc.if_else(mine, rows[name], pa.scalar(None, rows[name].type))
    return Dataset(pa.table(columns))
