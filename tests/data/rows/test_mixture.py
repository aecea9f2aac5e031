"""Mixtures: shares, coverage, and the promise that a row's place depends on seed, epoch and index alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars

from align.data.rows.mixture import Mixture, interleave, mix
from align.errors import UserError

disable_progress_bars()


def prepared(count: int, start: int = 0, **columns) -> Dataset:
    ids = [[start + number] for number in range(count)]
    rows = {"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids, "row": range(count)}
    return Dataset.from_dict({**rows, **columns})


def counts(mixture: Mixture, epoch: int) -> list[Counter]:
    out = [Counter() for _ in mixture.sizes]
    for index in mixture.indices(epoch):
        source, row = mixture.locate(int(index))
        out[source][row] += 1
    return out


def test_weight_one_takes_every_row_once():
    mixture = mix([prepared(7), prepared(5, 100)], [1, 1], seed=0)
    assert sorted(mixture.indices(0)) == list(range(12))
    assert list(mixture.indices(0)) != list(range(12))
    assert list(mixture.indices(0)) != list(mixture.indices(1))


def test_weights_are_shares_of_the_size():
    mixture = mix([prepared(10), prepared(10, 100), prepared(10, 200)], [2, 0.5, 1.25], seed=1)
    assert mixture.shares == (20, 5, 12)
    assert len(mixture) == 37
    for epoch in range(4):
        double, half, more = counts(mixture, epoch)
        assert set(double.values()) == {2}
        assert len(half) == 5
        assert set(half.values()) == {1}
        assert more.total() == 12


def test_a_share_is_rounded_and_not_cut_off():
    assert mix([prepared(100)], [0.29], seed=0).shares == (29,)  # 0.29 * 100 is 28.999999999999996


def test_no_row_comes_again_before_all_others_have_come():
    mixture = mix([prepared(10)], [0.4], seed=3)
    seen = Counter()
    for epoch in range(10):
        seen.update(counts(mixture, epoch)[0])
        assert max(seen.values()) - min(seen[row] for row in range(10)) <= 1
    assert set(seen.values()) == {4}


def test_a_half_is_another_half_in_the_next_epoch():
    mixture = mix([prepared(10)], [0.5], seed=0)
    first, second = (set(mixture.indices(epoch)) for epoch in (0, 1))
    assert first | second == set(range(10))


def test_any_epoch_can_be_asked_for_at_once():
    """Resuming must not have to replay what came before."""
    sets, weights = [prepared(13), prepared(8, 100)], [0.7, 1.3]
    straight = [mix(sets, weights, seed=5).indices(epoch).tolist() for epoch in range(6)]
    mixture = mix(sets, weights, seed=5)
    assert [mixture.indices(epoch).tolist() for epoch in (5, 2, 0)] == [straight[5], straight[2], straight[0]]
    assert mix(sets, weights, seed=6).indices(0).tolist() != straight[0]


def test_the_order_is_the_same_everywhere():
    """Written down once: another machine or another version of numpy must give the same order."""
    mixture = mix([prepared(6), prepared(3, 9)], [1, 2], seed=11)
    assert mixture.indices(2).tolist() == [7, 2, 8, 3, 8, 1, 0, 7, 4, 6, 5, 6]


def test_epoch_gives_the_rows_themselves():
    mixture = mix([prepared(3), prepared(2, 100)], [1, 1], seed=0)
    rows = mixture.epoch(0)
    assert rows["prompt_ids"][:] == [mixture.dataset[int(i)]["prompt_ids"] for i in mixture.indices(0)]
    assert Counter(rows["source"][:]) == {0: 3, 1: 2}


def test_masks_that_only_one_set_has_are_written_out():
    masked = prepared(2, 100, chosen_mask=[[0], [1]], rejected_mask=[[1], [1]])
    mixture = mix([prepared(2), masked], [1, 1], seed=0)
    assert mixture.dataset["chosen_mask"][:] == [[1], [1], [0], [1]]


def test_columns_that_do_not_go_together():
    other = Dataset.from_dict({"prompt_ids": [[1]], "completion_ids": [[2]], "row": [0]})
    with pytest.raises(UserError, match=r"sources 0 and 1 cannot be mixed: .*chosen_ids.* the other completion_ids"):
        mix([prepared(2), other], [1, 1], seed=0)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_impossible_weights(weight):
    with pytest.raises(UserError, match=r"weight of data source 1 is .*; expected a number above 0"):
        mix([prepared(2), prepared(2)], [1, weight], seed=0)


def test_empty_set():
    with pytest.raises(UserError, match="Data source 1 has no rows left"):
        mix([prepared(2), prepared(0)], [1, 1], seed=0)


def test_streams_are_interleaved_the_same_way_every_time():
    def read():
        streams = [prepared(40).to_iterable_dataset(), prepared(40, 100)]
        return [row["prompt_ids"][0] for row in interleave(streams, [3, 1], seed=2)]

    rows = read()
    assert rows == read()
    assert set(range(40)) <= set(rows)
    share = np.mean([number < 100 for number in rows[:80]])
    assert 0.6 < share < 0.9
