"""Plans of packs: the same on any number of processes, balanced, within their budget, in step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from zoo import token_ids

from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import row_lengths
from align.data.batches.packing import (
    PackLoader,
    PackSampler,
    PackStream,
    balanced,
    packs_for_budget,
    sequential_packs,
    shuffled,
    within_budget,
)
from align.errors import UserError

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


def in_order(count: int, reverse: bool = False) -> object:
    return lambda epoch: list(range(count))[:: -1 if reverse else 1]


def per_rank(
    lengths: Sequence[int], world: int, packs: int, epoch: int = 0, **options: object
) -> list[list[list[int]]]:
    """Packs of every rank, in order of use."""
    out = []
    for rank in range(world):
        sampler = PackSampler(
            lengths, 8, packs, options.get("order") or shuffled(len(lengths), 3), rank=rank, world=world,
            budget=options.get("budget"), drop_last=bool(options.get("drop_last")),
        )  # fmt: skip
        sampler.set_epoch(epoch)
        out.append(list(sampler))
        assert len(out[-1]) == len(sampler)
    return out


def steps(ranks: list[list[list[int]]], packs: int) -> list[list[tuple[int, ...]]]:
    """The packs of every optimizer step, all ranks together, in no order."""
    each = packs // len(ranks)
    count = len(ranks[0]) // each
    return [sorted(tuple(p) for rank in ranks for p in rank[i * each : (i + 1) * each]) for i in range(count)]


@given(lengths=LENGTHS, epoch=st.integers(0, 3), budget=st.one_of(st.none(), st.integers(300, 900)))
def test_a_plan_does_not_depend_on_the_number_of_processes(lengths: list[int], epoch: int, budget: int | None) -> None:
    alone = steps(per_rank(lengths, 1, 4, epoch, budget=budget), 4)
    for world in (2, 4):
        ranks = per_rank(lengths, world, 4, epoch, budget=budget)
        assert len({len(rank) for rank in ranks}) == 1
        assert steps(ranks, 4) == alone
    # every row once, and the examples of a step are those of the order
    order = shuffled(len(lengths), 3)(epoch)
    assert [sorted(chain(*step)) for step in alone] == [sorted(order[i : i + 8]) for i in range(0, len(lengths), 8)]


@given(lengths=LENGTHS)
def test_the_last_step_is_dropped_only_where_asked(lengths: list[int]) -> None:
    kept = per_rank(lengths, 2, 4, drop_last=True)
    assert len(kept[0]) == len(lengths) // 8 * 2
    assert len(per_rank(lengths, 2, 4)[0]) == -(-len(lengths) // 8) * 2


@given(lengths=LENGTHS, packs=st.integers(1, 12))
def test_balanced(lengths: list[int], packs: int) -> None:
    made = balanced(lengths, packs)
    assert len(made) == packs
    assert sorted(chain(*made)) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in pack) for pack in made]
    # the lightest pack took no row while another was lighter: no two differ by more than the longest row
    assert max(sums) - min(sums) <= max(lengths)
    assert max(sums) <= sum(lengths) / packs + max(lengths)


def test_balanced_by_hand() -> None:
    assert balanced([9, 1, 1, 7, 2], 2) == [[0, 1], [2, 3, 4]]
    assert balanced([5, 5], 4) == [[0], [1], [], []]


@given(lengths=LENGTHS, budget=st.integers(300, 1200))
def test_within_budget(lengths: list[int], budget: int) -> None:
    made = within_budget(lengths, budget)
    sums = [sum(lengths[i] for i in pack) for pack in made]
    assert sorted(chain(*made)) == list(range(len(lengths)))
    assert max(sums) <= budget
    assert all(made)
    assert sum(s <= budget / 2 for s in sums) <= 1  # two half-empty ones would be one
    assert len(made) <= 2 * sum(lengths) / budget + 1


@given(lengths=LENGTHS, budget=st.integers(300, 900), world=st.integers(1, 4))
def test_the_number_of_packs_for_a_budget(lengths: list[int], budget: int, world: int) -> None:
    order = shuffled(len(lengths), 0)
    packs = packs_for_budget(lengths, 8, order, 2, budget, world)
    assert packs % world == 0
    fullest = 0
    for epoch in range(2):
        ranks = per_rank(lengths, world, packs, epoch, budget=budget, order=order)
        for pack in chain(*ranks):
            assert sum(lengths[i] for i in pack) <= budget
        used = [sum(map(bool, step)) for step in steps(ranks, packs)]
        fullest = max(fullest, *used)
    assert packs - world < fullest <= packs  # no more than some step needs


def test_packs_are_filled_to_the_last_token() -> None:
    assert within_budget([3, 3, 2, 2, 2], 6) == [[0, 1], [2, 3, 4]]
    assert packs_for_budget([6, 3, 3], 3, in_order(3), 1, 6, 1) == 2  # a row as long as the budget fits


def test_a_row_over_the_budget_is_named() -> None:
    with pytest.raises(UserError, match=r"The longest row of the training data has 90 tokens, more than .*= 64"):
        packs_for_budget([10, 64, 90], 2, in_order(3), 1, 64, 1)


def test_empty_packs_fill_up_the_step() -> None:
    (packs,) = per_rank([10] * 8, 1, 6, budget=40, order=in_order(8))
    assert sorted(map(len, packs)) == [0, 0, 0, 0, 4, 4]


def test_an_order_that_was_not_foreseen_stays_in_step() -> None:
    # the third and later epochs put all long rows into one step, which needs more packs than were planned for
    lengths = [60] * 8 + [1] * 8

    def order(epoch: int) -> list[int]:
        mixed = [i for pair in zip(range(8), range(8, 16), strict=True) for i in pair]
        return mixed if epoch < 2 else list(range(16))

    packs = packs_for_budget(lengths, 8, order, 2, 70, 2)
    assert packs == 4
    for epoch in (0, 2):
        ranks = per_rank(lengths, 2, packs, epoch, budget=70, order=order)
        assert [len(rank) for rank in ranks] == [4, 4]
        assert [sorted(chain(*step)) for step in steps(ranks, packs)] == [
            sorted(order(epoch)[:8]),
            sorted(order(epoch)[8:]),
        ]


def test_orders_are_pure_functions_of_seed_and_epoch() -> None:
    order = shuffled(50, 7)
    assert order(3) == shuffled(50, 7)(3)
    assert sorted(order(0)) == list(range(50))
    assert order(0) != order(1)
    assert order(0) != shuffled(50, 8)(0)
    # neither is a shift of the other: epoch 1 of one seed is not epoch 0 of the next
    assert order(1) != shuffled(50, 8)(0)


@given(count=st.integers(0, 40), size=st.integers(1, 9), world=st.integers(1, 4))
def test_evaluation_packs(count: int, size: int, world: int) -> None:
    ranks = [sequential_packs([1] * count, size, rank=rank, world=world) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    dealt = [pack for turn in zip(*ranks, strict=True) for pack in turn]
    assert list(chain(*dealt)) == list(range(count))
    assert all(len(pack) <= size for pack in dealt)


# ---- streams and loaders


def pair_rows(count: int = 21) -> list[dict]:
    ids = token_ids(0)
    return [
        {"prompt_ids": ids(2 + i % 5), "chosen_ids": ids(1 + 7 * i % 11), "rejected_ids": ids(1 + 5 * i % 13), "row": i}
        for i in range(count)
    ]


class Rows:
    """A stream that knows its epoch, as a streamed data set does."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict]:
        rows = pair_rows()
        return iter(rows[self.epoch :] + rows[: self.epoch])


@pytest.mark.parametrize("epoch", [0, 4])
@pytest.mark.parametrize("world", [1, 2])
def test_a_stream_gives_the_packs_of_a_map_style_data_set(world: int, epoch: int) -> None:
    collator = TreeCollator(("chosen", "rejected"))
    dataset = Dataset.from_list(pair_rows())
    lengths = row_lengths(dataset, collator)

    def order(epoch: int) -> list[int]:
        return [*range(epoch, 21), *range(epoch)]

    for rank in range(world):
        stream = PackLoader(
            PackStream(Rows(), collator, collator.length, 8, 4, rank=rank, world=world, endless=True), batch_size=None
        )
        sampler = PackSampler(lengths, 8, 4, order, rank=rank, world=world)
        planned = PackLoader(dataset, batch_sampler=sampler, collate_fn=collator)
        planned.set_epoch(epoch)
        # an endless stream counts its passes itself
        batches = islice(stream, epoch * 12 // world, (epoch + 1) * 12 // world)
        streamed = [[e.row for e in batch["tree"].examples] for batch in batches]
        mapped = [[e.row for e in batch["tree"].examples] for batch in planned]
        assert streamed == mapped
        assert len(planned) == len(mapped) == 3 * 4 // world


def test_a_loader_with_workers_gives_the_same_batches() -> None:
    collator = TreeCollator(("chosen", "rejected"))
    dataset = Dataset.from_list(pair_rows())
    sampler = PackSampler(row_lengths(dataset, collator), 8, 4, shuffled(21, 0))
    here = list(PackLoader(dataset, batch_sampler=sampler, collate_fn=collator))
    there = list(PackLoader(dataset, batch_sampler=sampler, collate_fn=collator, num_workers=1))
    assert [b["tree"].targets.tolist() for b in here] == [b["tree"].targets.tolist() for b in there]


def test_a_stream_without_rows_ends() -> None:
    collator = TreeCollator(("chosen", "rejected"))
    assert list(PackStream([], collator, collator.length, 8, 4, endless=True)) == []
