"""Lengths of prepared rows without reading their tokens into Python."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from align.data.batches.collator import TreeCollator
from align.objectives.base import FRESH, source_of, sources_of


def longest_sequence(dataset: Dataset, collator: TreeCollator) -> int:
    """Most tokens of a prompt and one of its branches together."""
    longest = 0
    for name in sources_of(collator.branches):
        if f"{name}_ids" in dataset.column_names:
            prompts = f"{name}_prompt_ids" if f"{name}_prompt_ids" in dataset.column_names else "prompt_ids"
            total = column_lengths(dataset, f"{name}_ids") + column_lengths(dataset, prompts)
            longest = max(longest, int(total.max(initial=0)))
    return longest


def column_lengths(dataset: Dataset, column: str) -> np.ndarray:
    """Tokens of every row in a column of lists, int [n]; 0 where a row has none."""
    values = dataset.with_format("arrow")[column]
    return np.asarray(pc.fill_null(pc.list_value_length(values), 0))


def rows_with(dataset: Dataset, branch: str) -> np.ndarray:
    """Which rows have an answer of ``branch``, bool [n]; of labelled answers a row has one of two."""
    return np.asarray(pc.is_valid(dataset.with_format("arrow")[f"{branch}_ids"]))


def row_lengths(dataset: Dataset, collator: TreeCollator) -> list[int]:
    """Positions that every row takes in a pack, the shared prompt counted once; fresh samples are not there yet."""

    def lengths(column: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of every row, and whether it has any value at all."""
        values = pc.list_value_length(dataset.with_format("arrow")[column])
        return np.asarray(pc.fill_null(values, 0)), np.asarray(pc.is_valid(values))

    total = np.zeros(len(dataset), dtype=np.int64)
    shares_prompt = np.zeros(len(dataset), dtype=bool)
    for name in collator.branches:
        source = source_of(name)
        shares_prompt |= name in FRESH
        if f"{source}_ids" not in dataset.column_names:
            continue  # the collator says what is missing, with the row's columns
        tokens, there = lengths(f"{source}_ids")
        total += tokens + collator.feed_last * there
        own, given = np.zeros_like(total), np.zeros_like(shares_prompt)
        if f"{source}_prompt_ids" in dataset.column_names:
            own, given = lengths(f"{source}_prompt_ids")
        if source != name and not given.all():  # a tree of its own holds a copy of the shared prompt
            own, given = np.where(given, own, lengths("prompt_ids")[0]), np.ones_like(given)
        total += np.where(given, own - 1, 0)
        shares_prompt |= ~given
    if shares_prompt.any():
        total += np.where(shares_prompt, lengths("prompt_ids")[0] - 1, 0)
    return total.tolist()
