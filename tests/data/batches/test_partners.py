"""Which rows come together in an epoch, and how long they are together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from align.data.batches.collator import TreeCollator
from align.data.batches.partners import Partners, partners
from align.data.rows.mixture import mix
from align.errors import UserError


def pairs(forget: int = 7, retain: int = 5, each: int = 1, **options) -> Partners:
    """Prepared rows whose tokens say which they are: retained row i is token 100 + i, alternate k of row i 10 i + k."""
    rows = [
        {
            "prompt_ids": [1] * (1 + i % 3),
            "forget_ids": [2] * (1 + i),
            "alternate_ids": [10 * i + k] * (k + 1),
            "row": i,
        }
        for i in range(forget)
        for k in range(each)
    ]
    kept = [{"prompt_ids": [1] * (1 + i % 4), "retain_ids": [100 + i] * (2 * i + 1), "row": i} for i in range(retain)]
    values = {"seed": 3, "draw": "random", "each": each, **options}
    return partners(Dataset.from_list(rows), [Dataset.from_list(kept)] if retain else None, **values)


def straight(count: int):
    return lambda epoch: list(range(count))


def drawn(table: Partners, epoch: int) -> list[tuple[int, int]]:
    """(row to forget, retained row) of every place of an epoch."""
    rows = [table[place] for place in table.order(straight(len(table)))(epoch)]
    return [(row["row"], row["retain_ids"][0] - 100) for row in rows]


class TestPartners:
    def test_random_is_a_pure_function_of_seed_epoch_and_row(self):
        table = pairs()
        late = drawn(pairs(), 5)
        assert [drawn(table, epoch) for epoch in (0, 5, 0)] == [drawn(table, 0), late, drawn(table, 0)]
        assert drawn(pairs(seed=4), 0) != drawn(table, 0)
        orders = [drawn(table, epoch) for epoch in range(6)]
        assert len({tuple(order) for order in orders}) == 6
        shuffled = table.order(lambda epoch: [6, 0, 3])(5)
        rows = [(table[place]["row"], table[place]["retain_ids"][0] - 100) for place in shuffled]
        assert rows == [late[6], late[0], late[3]]  # of the row, not of its place in the order

    @pytest.mark.parametrize(("forget", "retain"), [(7, 5), (3, 11), (4, 4), (1, 3), (9, 1)])
    def test_no_retained_row_again_before_all_have_come(self, forget, retain):
        table = pairs(forget, retain)
        stream = [partner for epoch in range(12) for _, partner in drawn(table, epoch)]
        for start in range(0, len(stream) - retain + 1, retain):
            assert sorted(stream[start : start + retain]) == list(range(retain))

    def test_fixed_is_the_same_in_every_epoch(self):
        table = pairs(draw="fixed")
        assert drawn(table, 0) == drawn(table, 1) == drawn(table, 40) == drawn(pairs(), 0)
        assert len({partner for _, partner in drawn(table, 0)}) == 5
        assert drawn(pairs(draw="fixed", seed=9), 0) != drawn(table, 0)

    def test_index_counts_modulo_the_retained_rows(self):
        table = pairs(draw="index")
        assert drawn(table, 0) == drawn(table, 3) == [(i, i % 5) for i in range(7)]

    def test_index_needs_rows_without_gaps(self):
        table, others = pairs().forget, [pairs().retain.dataset]
        for forget, retain, says in (
            (table.select([0, 1, 3, 4]), others, "the row before row 3 to forget was left out"),
            (table, [others[0].select([1, 2])], "the row before row 1 to retain was left out"),
        ):
            with pytest.raises(UserError, match=says):
                partners(forget, retain, seed=0, draw="index", each=1)
            partners(forget, retain, seed=0, draw="fixed", each=1)
        twice = pairs(each=2).forget  # copies, and a second source that counts from 0 again
        both = concatenate_datasets([twice, twice])
        assert len(partners(both, others, seed=0, draw="index", each=2)) == 14

    def test_several_retained_sets_are_one(self):
        sets = [Dataset.from_list([{"prompt_ids": [1], "retain_ids": [100 + i], "row": 0}]) for i in range(3)]
        table = partners(pairs().forget, sets, seed=0, draw="random", each=1)
        assert sorted(partner for _, partner in drawn(table, 0)[:3]) == [0, 1, 2]

    def test_without_retained_rows(self):
        table = pairs(retain=0)
        assert table.order(straight(7))(0) == list(range(7))
        assert set(table[0]) == {"prompt_ids", "forget_ids", "alternate_ids", "row"}

    def test_every_row_comes_once_an_epoch(self):
        table = pairs(each=3)
        assert len(table) == 7
        for epoch in range(4):
            assert [row for row, _ in drawn(table, epoch)] == list(range(7))

    @pytest.mark.parametrize("each", [1, 2, 3])
    def test_alternates_take_turns(self, each):
        table = pairs(each=each)
        taken = [
            [table[place]["alternate_ids"][0] for place in table.order(straight(7))(epoch)] for epoch in range(2 * each)
        ]
        assert all(value // 10 == i for epoch in taken for i, value in enumerate(epoch))
        for i in range(7):
            turn = [epoch[i] % 10 for epoch in taken]
            assert sorted(turn[:each]) == list(range(each))
            assert turn[each:] == turn[:each]
        if each > 1:  # rows do not all begin with the same
            assert len({value % 10 for value in taken[0]}) > 1

    def test_where_a_row_begins_depends_on_the_seed(self):
        first, other = (pairs(30, 0, each=3, seed=seed).order(straight(30))(0) for seed in (0, 1))
        assert first != other

    def test_what_a_place_holds(self):
        table = pairs(each=2, draw="index")
        place = table.order(straight(7))(0)[6]
        row = table[place]
        kept = table.retain.dataset[1]
        assert (row["row"], row["forget_ids"]) == (6, [2] * 7)
        assert (row["retain_prompt_ids"], row["retain_ids"]) == (kept["prompt_ids"], kept["retain_ids"])
        assert row["prompt_ids"] == [1]  # its own

    def test_masks_come_along(self):
        kept = Dataset.from_list([{"prompt_ids": [1], "retain_ids": [5, 6], "retain_mask": [0, 1], "row": 0}])
        table = Partners(pairs().forget, mix([kept], [1.0], seed=0), 0)
        assert table[0]["retain_mask"] == [0, 1]

    @pytest.mark.parametrize(
        "branches",
        [
            ("forget",),
            ("forget", "retain"),
            ("forget", "retain_all"),
            ("alternate", "forget", "retain"),
            ("alternate", "retain", "retain_all"),
            ("forget_all", "retain"),
        ],
    )
    @pytest.mark.parametrize("feed_last", [False, True])
    def test_lengths_are_the_places_that_rows_take(self, branches, feed_last):
        table = pairs(each=2, retain=5 if any("retain" in name for name in branches) else 0)
        collator = TreeCollator(branches, feed_last=feed_last)
        lengths = table.lengths(collator)
        places = [place for epoch in range(8) for place in table.order(straight(7))(epoch)]
        assert len(set(places)) > 7
        for place in places:
            packed = collator([table[place]])["input_ids"].numel()
            assert lengths[place] == collator.length(table[place]) == packed
        assert len(lengths) == len(table.forget) * (5 if table.retain else 1)

    def test_partners_are_spread_evenly(self):
        table = pairs(40, 10)
        seen = Counter(pair for epoch in range(200) for pair in drawn(table, epoch))
        # each row with each partner 20 times on average; 3.9 is the deviation of a fair draw
        counts = np.array([seen[i, j] for i in range(40) for j in range(10)])
        assert counts.sum() == 8000
        assert abs(counts - 20).max() < 5 * np.sqrt(20 * 0.9)
