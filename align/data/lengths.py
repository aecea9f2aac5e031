"""Lengths of prepared rows without reading their tokens into Python."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from align.data.collator import TreeCollator


def row_lengths(dataset: Dataset, collator: TreeCollator) -> list[int]:
    """Positions that every row takes in a pack, the shared prompt counted once."""

    def lengths(column: str) -> np.ndarray:
        values = dataset.with_format("arrow")[column]
        return np.asarray(pc.fill_null(pc.list_value_length(values), 0))

    total = np.zeros(len(dataset), dtype=np.int64)
    shares_prompt = False
    for name in collator.branches:
        if f"{name}_ids" not in dataset.column_names:
            continue  # the collator says what is missing, with the row's columns
        total += lengths(f"{name}_ids") + collator.feed_last
        if f"{name}_prompt_ids" in dataset.column_names:
            total += np.maximum(lengths(f"{name}_prompt_ids") - 1, 0)
        else:
            shares_prompt = True
    if shares_prompt:
        total += lengths("prompt_ids") - 1
    return total.tolist()
