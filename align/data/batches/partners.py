"""Rows to forget, each with its alternate answer and its retained partner: pure functions of (seed, epoch, row).

A place of an epoch is written as one number, ``forget row + rows to forget * retain row``, so that packing, sharding
and resuming treat it as any other row number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from align.data.batches.lengths import row_lengths
from align.data.batches.packing import Order
from align.data.rows.mixture import Mixture, mix, random_words
from align.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from align.data.batches.collator import TreeCollator

Draw = Literal["random", "fixed", "index"]
_ALTERNATE = 2  # keeps this draw apart from those of mixtures


@dataclass(frozen=True)
class Partners:
    """A table of forgotten rows beside retained ones; ``pairs[place]`` is a prepared row with all branches.

    ``forget`` holds each row ``each`` times in succession, with another alternate answer every time (once where there
    are no alternates, or one). ``retain`` has the columns ``prompt_ids``, ``retain_ids`` and, where not all tokens are
    targets, ``retain_mask``; None where the objective reads no retained rows.
    """

    forget: Dataset
    retain: Mixture | None
    seed: int
    draw: Draw = "random"
    each: int = 1

    def __len__(self) -> int:
        """Rows of an epoch: every row to forget once."""
        return len(self.forget) // self.each

    def __getitem__(self, place: int) -> dict[str, Any]:
        partner, row = divmod(int(place), len(self.forget))
        out: dict[str, Any] = dict(self.forget[row])
        if self.retain is not None:
            kept: dict[str, Any] = self.retain.dataset[partner]
            out |= {name: kept[name] for name in ("retain_ids", "retain_mask") if name in kept}
            out["retain_prompt_ids"] = kept["prompt_ids"]
        return out

    def order(self, rows: Order) -> Order:
        """Places of an epoch, from the order of the rows to forget (numbers below ``len(self)``)."""

        def places(epoch: int) -> Sequence[int]:
            numbers = np.asarray(rows(epoch), dtype=np.int64)
            copies = numbers * self.each + self._alternate(epoch)[numbers]
            if self.retain is None:
                return copies.tolist()
            return (copies + len(self.forget) * self.partners(epoch)[numbers]).tolist()

        return places

    def partners(self, epoch: int) -> NDArray[np.int64]:
        """The retained row of each row to forget in an epoch, [len(self)].

        ``random`` deals out one shuffled pass over the retained rows after the other, so that none comes a second time
        before all have come once.
        """
        assert self.retain is not None
        count = len(self)
        if self.draw == "index":
            return np.arange(count) % len(self.retain.dataset)
        return self.retain.stream(0 if self.draw == "fixed" else epoch * count, count)

    def _alternate(self, epoch: int) -> NDArray[np.int64]:
        """Which copy of each row an epoch takes, [len(self)]: all of them in turn, starting anywhere."""
        starts = random_words(len(self), self.seed, _ALTERNATE) % np.uint64(self.each)
        return (starts.astype(np.int64) + epoch) % self.each

    def lengths(self, collator: TreeCollator) -> PairLengths:
        """Positions that each place takes in a pack."""
        kept = None if self.retain is None else np.asarray(row_lengths(self._alone(), collator))
        return PairLengths(np.asarray(row_lengths(self.forget, collator)), kept)

    def _alone(self) -> Dataset:
        """Retained rows as trees of their own, which is how they lie in a pack."""
        assert self.retain is not None
        return self.retain.dataset.rename_column("prompt_ids", "retain_prompt_ids")


@dataclass(frozen=True)
class PairLengths(Sequence[int]):
    """Lengths by place; nothing is written out, since there are as many places as pairs."""

    forget: NDArray[np.int64]
    retain: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.forget) * (1 if self.retain is None else len(self.retain))

    def __getitem__(self, place: Any) -> Any:
        partner, row = divmod(int(place), len(self.forget))
        return int(self.forget[row]) + (0 if self.retain is None else int(self.retain[partner]))


def partners(forget: Dataset, retain: Sequence[Dataset] | None, *, seed: int, draw: Draw, each: int) -> Partners:
    """Put prepared rows together. Raises ``UserError`` where ``draw`` is ``index`` and rows between were left out."""
    if draw == "index":
        for what, rows in (("forget", forget), *(("retain", rows) for rows in retain or ())):
            _check_unbroken(rows, what)
    kept = None if retain is None else mix(retain, [1.0] * len(retain), seed=seed)
    return Partners(forget, kept, seed, draw, each)


def _check_unbroken(rows: Dataset, what: str) -> None:
    """Refuse rows with a gap: those behind it would meet other partners than the files have side by side."""
    if "row" not in rows.column_names:
        return
    numbers = np.asarray(rows["row"][:])
    steps = np.diff(numbers, prepend=-1)
    gaps = np.flatnonzero((steps > 1) | ((steps < 0) & (numbers > 0)))  # another source begins at 0 again
    if len(gaps):
        row = int(numbers[gaps[0]])
        raise UserError(
            f"data.partner: index pairs rows by number, but the row before row {row} to {what} was left out, so that "
            "all behind it would meet others. Mend or remove that row in both files, or use fixed."
        )
