"""Rows to packed trees, and lengths without reading tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from zoo import token_ids

from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import row_lengths
from align.engine.layout import Segment
from align.errors import UserError
from align.objectives.base import sources_of

PAIR = {"prompt_ids": [5, 6, 7], "chosen_ids": [10, 11, 12, 13], "rejected_ids": [20, 21], "row": 9}

ONE_EACH = {"sequences:chosen": 1.0, "sequences:rejected": 1.0}


def tokens(batch: Any) -> dict[str, float]:
    return {unit: count for unit, count in batch.units.items() if unit.startswith("tokens")}


def test_a_pair_shares_its_prompt() -> None:
    out = TreeCollator(("chosen", "rejected"))([PAIR])
    batch = out["tree"]
    assert out["input_ids"] is batch.input_ids
    # p[:-1] | p[-1] c[:-1] | p[-1] r[:-1]
    assert batch.input_ids.tolist() == [[5, 6, 7, 10, 11, 12, 7, 20]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 2, 3]]
    assert batch.positions.tolist() == [2, 3, 4, 5, 6, 7]
    assert batch.targets.tolist() == [10, 11, 12, 13, 20, 21]
    assert batch.owner.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.lengths.tolist() == [4, 2]
    assert batch.ends.tolist() == [5, 7]
    assert {name: ids.tolist() for name, ids in batch.sequences.items()} == {"chosen": [0], "rejected": [1]}
    assert batch.layout.segments == [Segment(0, 2), Segment(2, 6, 0, 2), Segment(6, 8, 0, 2)]
    assert batch.units == {"examples": 1.0, "tokens:chosen": 4.0, "tokens:rejected": 2.0} | ONE_EACH
    assert batch.examples[0].row == 9
    assert not batch.feeds_last


def test_a_single_branch_needs_no_segment_for_its_prompt() -> None:
    batch = TreeCollator(("chosen",))([PAIR, PAIR])["tree"]
    assert batch.input_ids.tolist() == [[5, 6, 7, 10, 11, 12] * 2]
    assert batch.layout.segments == [Segment(0, 6), Segment(6, 12)]


def test_a_pair_without_one_of_its_answers_is_refused() -> None:
    with pytest.raises(UserError, match="A row has no column 'rejected_ids'"):
        TreeCollator(("chosen", "rejected"))([{**PAIR, "rejected_ids": None}])


def test_a_row_without_any_labelled_answer_is_refused() -> None:
    row = {"prompt_ids": [5], "desirable_ids": None, "undesirable_ids": None, "mismatch_ids": [6], "row": 7}
    with pytest.raises(UserError, match=r"^Row 7 has neither desirable_ids nor undesirable_ids\.$"):
        TreeCollator(("desirable", "undesirable", "mismatch"))([row])


def test_masks_choose_targets_and_count_in_units() -> None:
    row = {**PAIR, "chosen_mask": [0, 1, 0, 1], "rejected_mask": None}
    batch = TreeCollator(("chosen", "rejected"))([row])["tree"]
    assert batch.positions.tolist() == [3, 5, 6, 7]
    assert batch.targets.tolist() == [11, 13, 20, 21]
    assert batch.lengths.tolist() == [2, 2]
    assert batch.units == {"examples": 1.0, "tokens:chosen": 2.0, "tokens:rejected": 2.0} | ONE_EACH


def test_a_branch_with_a_prompt_of_its_own_is_a_tree_of_its_own() -> None:
    row = {**PAIR, "retain_ids": [30, 31], "retain_prompt_ids": [8, 9]}
    example = TreeCollator(("retain", "chosen", "rejected")).example(row)
    assert [[b.name for b in tree.branches] for tree in example.trees] == [["chosen", "rejected"], ["retain"]]
    assert list(example.trees[1].prompt) == [8, 9]
    batch = TreeCollator(("retain", "chosen", "rejected"))([row, row])["tree"]
    assert {name: ids.tolist() for name, ids in batch.sequences.items()} == {
        "chosen": [0, 3],
        "rejected": [1, 4],
        "retain": [2, 5],
    }
    assert batch.position_ids[0, -3:].tolist() == [0, 1, 2]


def test_a_branch_of_the_whole_text_is_a_tree_of_its_own_in_which_all_but_the_first_token_are_targets() -> None:
    row = {**PAIR, "retain_ids": [30, 31], "retain_prompt_ids": [8, 9, 4], "retain_mask": [0, 1]}
    batch = TreeCollator(("chosen", "retain_all"))([row])["tree"]
    assert batch.input_ids.tolist() == [[5, 6, 7, 10, 11, 12, 8, 9, 4, 30]]
    assert batch.position_ids[0, -4:].tolist() == [0, 1, 2, 3]
    assert batch.targets[-4:].tolist() == [9, 4, 30, 31]
    assert tokens(batch) == {"tokens:chosen": 4.0, "tokens:retain_all": 4.0}
    # beside the branch itself, whose mask holds for it alone, and on the row's own prompt
    both = TreeCollator(("retain", "retain_all", "chosen_all"))([row])["tree"]
    assert tokens(both) == {"tokens:retain": 1.0, "tokens:retain_all": 4.0, "tokens:chosen_all": 6.0}
    assert [list(t.prompt) for t in both.examples[0].trees] == [[8, 9, 4], [8], [5]]
    assert set(TreeCollator(("retain_all",))([])["tree"].units.values()) == {0.0}
    with pytest.raises(UserError, match="no column 'forget_ids'"):
        TreeCollator(("forget_all",))([PAIR])
    assert sources_of(("retain", "retain_all", "forget_all")) == ("retain", "forget")


def test_feeding_the_last_token() -> None:
    batch = TreeCollator(("chosen", "rejected"), feed_last=True)([PAIR])["tree"]
    assert batch.input_ids.tolist() == [[5, 6, 7, 10, 11, 12, 13, 7, 20, 21]]
    assert batch.ends.tolist() == [6, 9]
    assert batch.input_ids[0, batch.ends].tolist() == [13, 21]
    assert batch.positions.tolist() == [2, 3, 4, 5, 7, 8]
    assert batch.feeds_last
    assert batch.to("cpu").feeds_last


def test_the_dummy() -> None:
    batch = TreeCollator(("chosen", "rejected"))([])["tree"]
    assert batch.input_ids.shape == (1, 1)
    assert batch.units == dict.fromkeys(("examples", "tokens:chosen", "tokens:rejected", *ONE_EACH), 0.0)
    assert {name: ids.tolist() for name, ids in batch.sequences.items()} == {"chosen": [], "rejected": []}
    assert batch.sequences["chosen"].dtype == torch.long


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UserError, match="'alternate_ids', which the objective needs; it has: chosen_ids, prompt_ids"):
        TreeCollator(("chosen", "alternate"))([PAIR])


def random_rows() -> list[dict]:
    ids = token_ids(3)
    return [
        {
            "prompt_ids": ids(1 + i % 4),
            "chosen_ids": ids(1 + i % 7),
            "rejected_ids": ids(1 + i % 3),
            "retain_ids": ids(2 + i % 5),
            "retain_prompt_ids": ids(1 + i % 6) if i % 3 else None,  # where absent, the row's own prompt
        }
        for i in range(24)
    ]


@pytest.mark.parametrize("feed_last", [False, True])
@pytest.mark.parametrize(
    "branches",
    [
        ("chosen",),
        ("chosen", "rejected"),
        ("retain",),
        ("chosen", "rejected", "retain"),
        ("retain_all",),
        ("chosen", "retain", "retain_all", "chosen_all"),
    ],
)
def test_lengths_are_the_places_that_rows_take(branches: tuple[str, ...], feed_last: bool) -> None:
    collator = TreeCollator(branches, feed_last=feed_last)
    rows = random_rows()
    taken = [collator([row])["input_ids"].shape[1] for row in rows]
    assert row_lengths(Dataset.from_list(rows), collator) == taken
    assert [collator.length(row) for row in rows] == taken
    assert collator(rows)["input_ids"].shape[1] == sum(taken)


@pytest.mark.parametrize(("mask", "says"), [([1, 1], "has 2 entries, 2 of them targets"), ([0, 0, 0], "0 of them")])
def test_masks_that_would_lose_targets_without_a_word_are_refused(mask: list[int], says: str) -> None:
    row = {"prompt_ids": [1], "chosen_ids": [2, 3, 4], "chosen_mask": mask, "rejected_ids": [5], "row": 7}
    with pytest.raises(UserError, match=f"Row 7: chosen_mask .*{says}"):
        TreeCollator(("chosen", "rejected"))([row])
