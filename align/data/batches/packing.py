"""Which examples share a micro-batch: planned for the whole optimizer step, then dealt to the ranks.

A plan depends on the seed, the epoch and the lengths, never on the number of processes. Every rank gets equally many
packs for every step; a pack without examples is a dummy that weighs nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from align.data.batches.ahead import ahead
from align.errors import UserError

Order = Callable[[int], Sequence[int]]


def shuffled(count: int, seed: int) -> Order:
    """The order of an epoch as a pure function of (seed, epoch)."""

    def order(epoch: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(count, generator=generator).tolist()

    return order


def balanced(lengths: Sequence[int], packs: int) -> list[list[int]]:
    """Indices of ``lengths`` in ``packs`` lists of nearly equal sums: the longest goes to the lightest pack."""
    heap = [(0, k) for k in range(packs)]
    out: list[list[int]] = [[] for _ in range(packs)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        total, k = heapq.heappop(heap)
        out[k].append(i)
        heapq.heappush(heap, (total + lengths[i], k))
    return [sorted(p) for p in out]


def within_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of ``lengths`` in as few lists as first-fit-decreasing finds whose sums stay within ``budget``."""
    packs: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for k, free in enumerate(room):
            if lengths[i] <= free:
                packs[k].append(i)
                room[k] -= lengths[i]
                break
        else:
            packs.append([i])
            room.append(budget - lengths[i])
    return [sorted(p) for p in packs]


class PackSampler(Sampler[list[int]]):
    """Packs of data-set indices for one rank, in order of use.

    Args:
        lengths: tokens of every row, shared prompts counted once.
        step_examples: examples of one optimizer step on all ranks.
        step_packs: micro-batches of one optimizer step on all ranks, a multiple of ``world``.
        order: data-set indices of an epoch.
        budget: most tokens of a micro-batch; None balances the step over its packs instead.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        step_examples: int,
        step_packs: int,
        order: Order,
        *,
        rank: int = 0,
        world: int = 1,
        budget: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.lengths, self.step_examples, self.step_packs = lengths, step_examples, step_packs
        self.order, self.rank, self.world, self.budget, self.drop_last = order, rank, world, budget, drop_last
        self.epoch = 0
        self._size = len(order(0))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        full, rest = divmod(self._size, self.step_examples)
        return full + (rest > 0 and not self.drop_last)

    def __len__(self) -> int:
        return self.steps() * self.step_packs // self.world

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        for step in range(self.steps()):
            window = order[step * self.step_examples : (step + 1) * self.step_examples]
            yield from self.plan(window)[self.rank :: self.world]

    def plan(self, window: Sequence[int]) -> list[list[int]]:
        """All ranks' packs of one optimizer step, each a list of data-set indices."""
        lengths = [self.lengths[i] for i in window]
        packs = [] if self.budget is None else within_budget(lengths, self.budget)
        if self.budget is None or len(packs) > self.step_packs:
            # an order that was not foreseen may need one pack more; too full is better than a step out of line
            packs = balanced(lengths, self.step_packs)
        packs += [[] for _ in range(self.step_packs - len(packs))]
        return [[window[i] for i in pack] for pack in packs]


def packs_for_budget(
    lengths: Sequence[int], step_examples: int, order: Order, epochs: int, budget: int, world: int
) -> int:
    """Fewest packs per optimizer step, a multiple of ``world``, with no micro-batch above ``budget`` tokens."""
    most = 1
    for epoch in range(epochs):
        sizes = [lengths[i] for i in order(epoch)]
        if max(sizes) > budget:
            raise UserError(
                f"The longest row of the training data has {max(sizes)} tokens, more than "
                f"train.max_tokens_per_microbatch = {budget}. Raise it, or lower data.max_length."
            )
        for start in range(0, len(sizes), step_examples):
            most = max(most, len(within_budget(sizes[start : start + step_examples], budget)))
    return -(-most // world) * world


def sequential_packs(lengths: Sequence[int], examples: int, *, rank: int, world: int) -> list[list[int]]:
    """Packs of consecutive rows for evaluation, dealt to ranks, filled up with empty ones."""
    packs = [list(range(i, min(i + examples, len(lengths)))) for i in range(0, len(lengths), examples)]
    packs += [[] for _ in range(-len(packs) % world)]
    return packs[rank::world]


class PackLoader(DataLoader):
    """A data loader over planned packs that passes the epoch on to its sampler."""

    def set_epoch(self, epoch: int) -> None:
        if self.batch_sampler is not None:
            self.batch_sampler.set_epoch(epoch)  # type: ignore[attr-defined]


class PackStream(IterableDataset):
    """Micro-batches of one rank from a stream of prepared rows.

    Every rank reads the whole stream and keeps its share, so that the packs are those of a run on any number of ranks.
    An ``endless`` one begins anew where the rows end. The next step's are made while one is computed.
    """

    def __init__(
        self,
        rows: Iterable[dict],
        collate: Callable[[list[dict]], dict],
        length: Callable[[dict], int],
        step_examples: int,
        step_packs: int,
        *,
        rank: int = 0,
        world: int = 1,
        endless: bool = False,
    ) -> None:
        self.rows, self.collate, self.length, self.endless = rows, collate, length, endless
        self.step_examples, self.step_packs, self.rank, self.world = step_examples, step_packs, rank, world

    def __iter__(self) -> Iterator[dict]:
        return ahead(self._batches(), max(1, self.step_packs // self.world))

    def _batches(self) -> Iterator[dict]:
        for number in itertools.count() if self.endless else (0,):
            # counted here and not by the Trainer, which takes all passes for one epoch and skips across their ends
            if hasattr(self.rows, "set_epoch"):
                self.rows.set_epoch(number)
            window: list[dict] = []
            empty = True
            for row in self.rows:
                empty = False
                window.append(row)
                if len(window) == self.step_examples:
                    yield from self._deal(window)
                    window = []
            if window:
                yield from self._deal(window)
            if empty:
                return

    def _deal(self, window: list[dict]) -> Iterator[dict]:
        for pack in balanced([self.length(r) for r in window], self.step_packs)[self.rank :: self.world]:
            yield self.collate([window[i] for i in pack])
