"""Which answers of prepared rows are stored: by the very keys that a batch's answers have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from align.data.batches.collator import TreeCollator
from align.objectives import DPO
from align.reference.store import LogProbStore, sequence_key
from align.trainers.coverage import Coverage, answer_keys, coverage_of

PAIRS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9], "rejected_ids": [10], "row": 0},
    {"prompt_ids": [5], "chosen_ids": [70_000, 2], "rejected_ids": [11, 12, 13], "row": 1},
]
MASKED = [row | {"chosen_mask": [1, 0][: len(row["chosen_ids"])], "rejected_mask": None} for row in PAIRS]
LABELLED = [
    {"prompt_ids": [1, 2], "desirable_ids": [3], "undesirable_ids": None, "row": 0},
    {"prompt_ids": [1], "desirable_ids": None, "undesirable_ids": [4, 5], "row": 1},
]
PARTNERS = [
    {"prompt_ids": [1, 2], "forget_ids": [3, 4], "retain_ids": [6], "retain_prompt_ids": [9, 9, 9], "row": 0},
    {"prompt_ids": [2], "forget_ids": [7], "retain_ids": [8, 8], "retain_prompt_ids": None, "row": 1},
]


def expected(rows: list[dict], branches: tuple[str, ...]) -> list[bytes]:
    collator = TreeCollator(branches)
    trees = [tree for row in rows for tree in collator.example(row).trees]
    return sorted(sequence_key(tree, branch) for tree in trees for branch in tree.branches)


@pytest.mark.parametrize(
    ("rows", "branches"),
    [
        (PAIRS, ("chosen", "rejected")),
        (PAIRS, ("chosen_all",)),
        (MASKED, ("chosen", "rejected")),
        (LABELLED, ("desirable", "undesirable")),
        (PARTNERS, ("forget", "retain")),
        (PARTNERS, ("forget_all", "retain_all")),
    ],
    ids=["pairs", "whole texts", "masks", "labels", "own prompts", "whole texts with own prompts"],
)
def test_keys_are_those_of_the_collator(rows: list[dict], branches: tuple[str, ...]) -> None:
    found = np.concatenate(list(answer_keys(Dataset.from_list(rows), branches)))
    assert sorted(key.tobytes() for key in found) == expected(rows, branches)
    picked = Dataset.from_list([rows[1], rows[0], rows[1]]).select([1, 2])  # rows that lie elsewhere in their table
    found = np.concatenate(list(answer_keys(picked, branches)))
    assert sorted(key.tobytes() for key in found) == expected(rows, branches)


def test_what_is_stored_is_counted_and_what_is_damaged_is_not(tmp_path: Path) -> None:
    said: list[str] = []
    store = LogProbStore(tmp_path, "0" * 64, say=said.append)
    dataset = Dataset.from_list(PAIRS)
    assert coverage_of(store, DPO(), (dataset,)) == Coverage(0, 4)
    for key in expected(PAIRS[:1], ("chosen", "rejected")):
        store.put([key], [1], torch.zeros(1))
    assert coverage_of(store, DPO(), (dataset, {"a": dataset})) == Coverage(4, 4)  # not yet on disk
    store.flush()
    assert coverage_of(LogProbStore(tmp_path, "0" * 64), DPO(), (dataset, None)) == Coverage(2, 2)
    (file,) = store.folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x40")
    again = LogProbStore(tmp_path, "0" * 64, say=said.append)
    assert len(again) == 2  # what it says is believed until somebody relies on it
    assert coverage_of(again, DPO(), (dataset,)) == Coverage(0, 4)
    assert said == [
        f"reference store: {file.name} is damaged (its content does not match its digest); its rows will be computed "
        "again and the file is removed."
    ]
