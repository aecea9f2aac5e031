"""From a recipe's data section to prepared data sets, an order for the epochs, and a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from align.data.mixture import interleave, mix
from align.data.sources import load_source, source_name
from align.data.tokenize import prepare
from align.errors import UserError
from align.probes.probe_set import choose_rows, with_other

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from align.recipe import Recipe, Source


@dataclass(frozen=True)
class Data:
    """Prepared rows of a run. ``order`` gives the rows of an epoch; None for a stream, as is ``digest``."""

    train: Dataset | IterableDataset
    held_out: Dataset | None
    order: Callable[[int], Sequence[int]] | None
    digest: str | None


def load_data(recipe: Recipe, tokenizer: Any, branches: Sequence[str], say: Callable[[str], Any]) -> Data:
    """Load, tokenise and mix; says what became of the rows."""
    parts = [_prepared(recipe, s, tokenizer, branches, say, "train") for s in recipe.data.train]
    held_out = None
    if recipe.data.held_out:
        kept = [_prepared(recipe, s, tokenizer, branches, say, "held out") for s in recipe.data.held_out]
        if not all(hasattr(part, "__len__") for part in kept):
            raise UserError("data.held_out cannot be streamed: it is read many times. Give it `rows:` instead.")
        held_out = mix(kept, [1.0] * len(kept), seed=recipe.seed).dataset
        if shared := _shared([part for part in parts if hasattr(part, "__len__")], held_out):
            say(f"warning: {shared:,} of the training rows are held out as well: align check lists them")
    weights = [s.weight for s in recipe.data.train]
    if not all(hasattr(part, "__len__") for part in parts):
        return Data(interleave(parts, weights, seed=recipe.seed), held_out, None, None)
    mixture = mix(parts, weights, seed=recipe.seed)
    return Data(mixture.dataset, held_out, lambda epoch: mixture.indices(epoch).tolist(), digest(mixture.dataset))


def held_out_rows(data: Data, recipe: Recipe) -> list[dict]:
    """Rows of the probe set: of the held-out pairs, or of the training pairs where there are none."""
    from datasets import Dataset

    source = data.held_out if data.held_out is not None else data.train
    if not isinstance(source, Dataset) or not recipe.watch.probe_pairs:
        return []
    if not {"chosen_ids", "rejected_ids"} <= set(source.column_names):
        return []
    rows: list[dict] = [source[i] for i in choose_rows(len(source), recipe.watch.probe_pairs, recipe.seed)]
    return with_other(rows)


def digest(dataset: Dataset) -> str:
    """Hex digest of the token columns of a prepared data set."""
    hasher = hashlib.sha256()
    for name in sorted(c for c in dataset.column_names if c.endswith(("_ids", "_mask"))):
        hasher.update(name.encode())
        for chunk in dataset.with_format("arrow").select_columns([name]).iter(4096):
            column = pa.chunked_array(chunk[name]).combine_chunks() if isinstance(chunk, dict) else chunk[name]
            flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            lengths = np.asarray(pa.compute.fill_null(pa.compute.list_value_length(flat), 0), dtype=np.int64)
            hasher.update(lengths.tobytes())
            hasher.update(np.asarray(pa.compute.list_flatten(flat), dtype=np.int64).tobytes())
    return hasher.hexdigest()


def _shared(parts: Sequence[Any], held_out: Dataset) -> int:
    """Training rows whose tokens, prompt and branches, are those of a held-out row."""
    columns = sorted(name for name in held_out.column_names if name.endswith("_ids"))

    def keys(dataset: Dataset) -> list[int]:
        rows = dataset.select_columns(columns)
        return [hash(tuple(tuple(row[name] or ()) for name in columns)) for row in rows]

    known = set(keys(held_out))
    return sum(key in known for part in parts for key in keys(part))


def _prepared(
    recipe: Recipe, source: Source, tokenizer: Any, branches: Sequence[str], say: Callable[[str], Any], what: str
) -> Any:
    rows = load_source(source, base=recipe.base)
    prepared, account = prepare(
        rows,
        tokenizer,
        branches,
        max_length=recipe.data.max_length,
        truncation=recipe.data.truncation,
        system=source.system,
    )
    if hasattr(prepared, "__len__"):
        say(f"{what}: {source_name(source)}")
        for sentence in account.summary():
            say(f"  {sentence}")
    return prepared
