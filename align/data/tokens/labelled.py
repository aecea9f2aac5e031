"""Prepared rows with one labelled answer each: columns by label, and an answer to another prompt beside every row.

A row has its answer in ``desirable_ids`` or in ``undesirable_ids`` and null in the other, masks likewise. A pair
becomes two rows, all chosen answers before all rejected ones. ``mismatch_ids`` is the completion of the nearest row
before, in this order and going round, that has another prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.data.rows.sources import is_table
from align.data.tokens.preparation import Preparation
from align.errors import UserError
from align.objectives.base import MISMATCH

if TYPE_CHECKING:
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
    rows = _taken_apart(prepared) if "chosen_ids" in prepared.column_names else prepared
    if MISMATCH in branches:
        rows = _with_mismatch(rows, account)
    labels = rows["label"][:]
    account.labels = (sum(labels), len(labels) - sum(labels))
    return rows.map(_columns_by_label, batched=True, remove_columns=rows.column_names, features=_features(rows))


def _taken_apart(pairs: Dataset) -> Dataset:
    """Two rows for each pair: chosen answers first, so that the row before a rejected answer has another prompt."""
    from datasets import concatenate_datasets

    parts = []
    for name, label in (("chosen", True), ("rejected", False)):
        columns = {f"{name}_{end}": f"completion_{end}" for end in ("ids", "mask")}
        columns = {old: new for old, new in columns.items() if old in pairs.column_names}
        part = pairs.select_columns(["prompt_ids", *columns, "row"]).rename_columns(columns)
        parts.append(part.add_column("label", [label] * len(part)))
    return concatenate_datasets(parts)


def _with_mismatch(rows: Dataset, account: Preparation) -> Dataset:
    """Rows with the columns ``mismatch_ids`` and ``mismatch_mask``, cut so that they fit behind the prompt."""
    from datasets import concatenate_datasets

    lenders = rows_before([hash(tuple(ids)) for ids in rows["prompt_ids"]])
    if lenders is None:
        raise UserError(
            "The objective compares every answer with one to another prompt, but all rows have the same prompt. Give "
            "rows with other prompts, or set form: apo_zero_unpaired."
        )
    columns = {f"completion_{end}": f"mismatch_{end}" for end in ("ids", "mask")}
    columns = {old: new for old, new in columns.items() if old in rows.column_names}
    lent = rows.select(lenders).select_columns(list(columns)).rename_columns(columns)
    rows = concatenate_datasets([rows, lent], axis=1)
    if account.max_length is None:
        return rows
    return _fitted(rows, account, account.max_length)


def rows_before(prompts: Sequence[Any]) -> list[int] | None:
    """For each row the nearest one before it, going round, whose prompt differs; None where all prompts are equal."""
    found = [-1] * len(prompts)
    for place in range(2 * len(prompts)):  # a second round for rows at the start, whose lender is near the end
        row = place % len(prompts)
        before = (row - 1) % len(prompts)
        found[row] = before if prompts[before] != prompts[row] else found[before]
    return None if -1 in found else found


def _fitted(rows: Dataset, account: Preparation, limit: int) -> Dataset:
    """Rows whose prompt and mismatched answer have at most ``limit`` tokens together; the answer's end is cut off."""
    for prompt, answer, number in zip(rows["prompt_ids"], rows["mismatch_ids"], rows["row"], strict=True):
        if len(prompt) + len(answer) > limit:
            account.mismatch_cut.add(number)
    return rows.map(_Cut(limit), batched=True) if account.mismatch_cut.count else rows


@dataclass(frozen=True)
class _Cut:
    """Cuts mismatched answers to what fits behind the prompt within ``limit`` tokens."""

    limit: int

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        room = [self.limit - len(prompt) for prompt in batch["prompt_ids"]]
        names = [name for name in ("mismatch_ids", "mismatch_mask") if name in batch]
        out = {n: [values[:most] for values, most in zip(batch[n], room, strict=True)] for n in names}
        if "mismatch_mask" in out:  # where no target is left, what is left is scored
            out["mismatch_mask"] = [mask if any(mask) else [1] * len(mask) for mask in out["mismatch_mask"]]
        return out


def _columns_by_label(batch: Mapping[str, list]) -> dict[str, list]:
    out = {name: values for name, values in batch.items() if name != "label" and not name.startswith("completion_")}
    for side, label in _SIDES:
        for name in (name for name in batch if name.startswith("completion_")):
            values = zip(batch[name], batch["label"], strict=True)
            out[name.replace("completion", side)] = [value if own == label else None for value, own in values]
    return out


def _features(rows: Dataset) -> Any:
    """Features of the rows by label."""
    from datasets import Features

    kept = {name: kind for name, kind in rows.features.items() if name != "label"}
    out: Any = Features()
    for name, kind in kept.items():
        if name.startswith("completion_"):
            out.update({name.replace("completion", side): kind for side, _ in _SIDES})
        else:
            out[name] = kind
    return out
