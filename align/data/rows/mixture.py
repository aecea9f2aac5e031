"""Mixtures of data sets. Which row comes when is a pure function of (seed, epoch, index), so resuming repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from align.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from numpy.typing import NDArray

_EPOCH, _SOURCE = (0, 1)  # keeps the draws for the order of an epoch apart from those for its rows


@dataclass(frozen=True)
class Mixture:
    """Several map-style data sets, one after the other in ``dataset``, and the order in which an epoch takes them.

    ``weights`` are shares relative to size: weight 1 takes every row once per epoch, 2 takes it twice, 0.5 takes a
    seeded half. A source deals out one shuffled pass over its rows after the other and an epoch takes up where the
    last one ended, so no row comes a second time before all others of its source have come once.
    """

    dataset: Dataset
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int = 0

    @property
    def shares(self) -> tuple[int, ...]:
        """Rows that an epoch takes from each source; at least one."""
        return tuple(max(1, round(weight * size)) for weight, size in zip(self.weights, self.sizes, strict=True))

    def __len__(self) -> int:
        """Rows of an epoch, the same in every epoch."""
        return sum(self.shares)

    def indices(self, epoch: int) -> NDArray[np.int64]:
        """Row numbers of ``dataset`` in the order of an epoch (counted from 0), int64 of shape [len(self)]."""
        offsets = np.cumsum((0, *self.sizes[:-1]))
        drawn = [
            offset + self._draw(source, epoch * share, share)
            for source, (offset, share) in enumerate(zip(offsets, self.shares, strict=True))
        ]
        flat = np.concatenate(drawn)
        return flat[_shuffled(len(flat), self.seed, _EPOCH, epoch)]

    def stream(self, start: int, count: int) -> NDArray[np.int64]:
        """``count`` row numbers from place ``start`` of the epochs put one after the other."""
        size = len(self)
        epochs = range(start // size, (start + count - 1) // size + 1) if count else range(0)
        drawn = [self.indices(epoch) for epoch in epochs] or [np.empty(0, dtype=np.int64)]
        begin = start % size
        return np.concatenate(drawn)[begin : begin + count]

    def locate(self, index: int) -> tuple[int, int]:
        """Source number and row number within it of a row of ``dataset``."""
        ends = np.cumsum(self.sizes)
        source = int(np.searchsorted(ends, index, side="right"))
        return source, int(index - (ends[source] - self.sizes[source]))

    def epoch(self, epoch: int) -> Dataset:
        """The rows of an epoch, in order."""
        return self.dataset.select(self.indices(epoch))

    def _draw(self, source: int, start: int, count: int) -> NDArray[np.int64]:
        """``count`` rows of a source from place ``start`` of its endless stream of shuffled passes."""
        size = self.sizes[source]
        passes = range(start // size, (start + count - 1) // size + 1)
        stream = np.concatenate([_shuffled(size, self.seed, _SOURCE, source, number) for number in passes])
        begin = start - passes.start * size
        return stream[begin : begin + count]


def _shuffled(size: int, *key: int) -> NDArray[np.int64]:
    """A permutation that depends on the key alone.

    Sorting the raw output of the bit generator, because numpy promises that this never changes between its versions;
    of ``Generator.permutation`` it does not.
    """
    return np.argsort(random_words(size, *key), kind="stable").astype(np.int64)


def random_words(size: int, *key: int) -> NDArray[np.uint64]:
    """``size`` random words that depend on the key alone."""
    return np.random.PCG64(np.random.SeedSequence(tuple(key))).random_raw(size)


def mix(datasets: Sequence[Dataset], weights: Sequence[float], *, seed: int) -> Mixture:
    """Put prepared map-style data sets together (see ``Mixture``). The column ``source`` holds the number of each.

    Raises ``UserError`` where the columns do not go together, a set is empty or a weight is not positive.
    """
    from datasets import concatenate_datasets

    _check_weights(weights, len(datasets))
    for number, dataset in enumerate(datasets):
        if len(dataset) == 0:
            raise UserError(f"Data source {number} has no rows left.")
    parts = [_with_source(part, number) for number, part in enumerate(_aligned(datasets))]
    joined = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    return Mixture(joined, tuple(len(part) for part in parts), tuple(float(w) for w in weights), seed)


def interleave(
    datasets: Sequence[Dataset | IterableDataset], weights: Sequence[float], *, seed: int
) -> IterableDataset:
    """Put streamed data sets together. Their sizes are unknown, so a weight is a share of the rows drawn.

    Which source comes next is drawn with ``seed`` alone. The stream ends when every source has come to its end once;
    until then the shorter ones begin anew.
    """
    from datasets import Dataset, interleave_datasets

    _check_weights(weights, len(datasets))
    streams = [part.to_iterable_dataset() if isinstance(part, Dataset) else part for part in datasets]
    if len(streams) == 1:
        return streams[0]
    total = float(sum(weights))
    shares = [weight / total for weight in weights]
    return interleave_datasets(streams, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")


def _check_weights(weights: Sequence[float], count: int) -> None:
    if count == 0 or len(weights) != count:
        raise UserError(f"A mixture needs one weight per data source; got {len(weights)} for {count}.")
    for number, weight in enumerate(weights):
        if not (0 < weight < float("inf")):
            raise UserError(f"The weight of data source {number} is {weight}; expected a number above 0.")


def _aligned(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The same columns everywhere. A mask that a set does without (all tokens are targets) is written out."""
    masks = sorted({name for part in datasets for name in part.column_names if name.endswith("_mask")})
    filled = [_with_masks(part, masks) for part in datasets]
    ids = [{name for name in part.column_names if name.endswith("_ids")} for part in filled]
    for number, names in enumerate(ids):
        if names != ids[0]:
            raise UserError(
                f"Data sources 0 and {number} cannot be mixed: one has the columns {', '.join(sorted(ids[0]))}, "
                f"the other {', '.join(sorted(names))}."
            )
    shared = [name for name in filled[0].column_names if all(name in part.column_names for part in filled)]
    first, *others = [part.select_columns(shared) for part in filled]
    # Casting copies, so it is left out where nothing would change.
    return [first, *(part if part.features == first.features else part.cast(first.features) for part in others)]


def _with_masks(dataset: Dataset, masks: Sequence[str]) -> Dataset:
    from datasets import List, Value

    missing = [m for m in masks if m not in dataset.column_names and m.replace("_mask", "_ids") in dataset.column_names]
    if not missing:
        return dataset

    def ones(batch: dict[str, list]) -> dict[str, list]:
        return {mask: [[1] * len(ids) for ids in batch[mask.replace("_mask", "_ids")]] for mask in missing}

    features = dataset.features.copy()
    features.update({mask: List(Value("int8")) for mask in missing})
    return dataset.map(ones, batched=True, features=features)


def _with_source(dataset: Dataset, number: int) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    if "source" in dataset.column_names:
        dataset = dataset.remove_columns("source")
    column = Dataset.from_dict({"source": np.full(len(dataset), number, dtype=np.int16)})
    return concatenate_datasets([dataset, column], axis=1)
