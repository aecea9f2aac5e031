"""From a recipe's data section to prepared data sets, an order for the epochs, and a digest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from align.data.batches.lengths import rows_with
from align.data.rows.convex_rows import convex_rows
from align.data.rows.lists import row_digests
from align.data.rows.mixture import interleave, mix
from align.data.rows.questions import asked
from align.data.rows.sources import is_table, load_source, naming, source_name
from align.data.tokens.prompts import prompt_rows
from align.data.tokens.tokenize import prepare, recognise_dataset
from align.data.tokens.unlearning import alternate_texts, forget_rows, retain_rows
from align.errors import UserError
from align.objectives.base import LABELLED, ROW_VALUES, sources_of
from align.probes.probe_set import choose_rows, labelled_pair, with_other
from align.runs.quiet import silent

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from align.recipe import Recipe
    from align.recipe.sections import Source


@dataclass(frozen=True)
class Data:
    """Prepared rows of a run. ``order`` gives the rows of an epoch; None for a stream, as is ``digest``.

    Of an unlearning run ``train`` are the rows to forget, each ``each`` times in succession, and ``retain`` the others.
    """

    train: Dataset | IterableDataset
    held_out: Dataset | None
    order: Callable[[int], Sequence[int]] | None
    digest: str | None
    retain: Sequence[Dataset] | None = None
    each: int = 1


def load_data(recipe: Recipe, tokenizer: Any, branches: Sequence[str], say: Callable[[str], Any]) -> Data:
    """Load, tokenise and mix; says what became of the rows."""
    if recipe.data.forget:
        return _forgetting(recipe, tokenizer, branches, say)
    assert recipe.data.train is not None  # a recipe has the one or the other
    branches = sources_of(branches)
    parts = [_prepared(recipe, s, tokenizer, branches, say, "train") for s in recipe.data.train]
    held_out = None
    if recipe.data.held_out:
        kept = [_prepared(recipe, s, tokenizer, branches, say, "held out") for s in recipe.data.held_out]
        if not all(hasattr(part, "__len__") for part in kept):
            raise UserError("data.held_out cannot be streamed: it is read many times. Give it `rows:` instead.")
        held_out = mix(kept, [1.0] * len(kept), seed=recipe.seed).dataset
        as_given = parts
        if recipe.data.convex is not None:  # what is rewritten no longer looks like what is held out
            as_given = [_prepared(recipe, s, tokenizer, branches, silent, "compared") for s in recipe.data.train]
        if shared := _shared([part for part in as_given if hasattr(part, "__len__")], held_out):
            say(f"warning: {shared:,} of the training rows are held out as well: align check lists them")
    weights = [s.weight for s in recipe.data.train]
    if not all(hasattr(part, "__len__") for part in parts):
        return Data(interleave(parts, weights, seed=recipe.seed), held_out, None, None)
    mixture = mix(parts, weights, seed=recipe.seed)
    return Data(mixture.dataset, held_out, lambda epoch: mixture.indices(epoch).tolist(), digest(mixture.dataset))


def _forgetting(recipe: Recipe, tokenizer: Any, branches: Sequence[str], say: Callable[[str], Any]) -> Data:
    """Rows to forget and to retain."""
    data = recipe.data
    reads = set(sources_of(branches))
    texts, wanted = None, 1
    if data.alternates is not None:
        texts = alternate_texts(data.alternates, recipe.base)
        wanted = data.alternates.each or epochs(recipe)
    forget, counts = [], set()
    for source in data.forget or []:
        say(f"forget: {source_name(source)}")
        rows, each = forget_rows(
            load_source(source, base=recipe.base),
            tokenizer,
            alternate="alternate" in reads,
            texts=texts,
            each=wanted,
            seed=recipe.seed,
            say=say,
            **_limits(recipe, source),
        )
        forget.append(rows)
        counts.add(each)
    if len(counts) > 1:
        raise UserError("The sources of data.forget have different numbers of alternates to a row; make them equal.")
    retain = []
    for source in (data.retain or []) if "retain" in reads else []:
        say(f"retain: {source_name(source)}")
        retain.append(retain_rows(load_source(source, base=recipe.base), tokenizer, say, **_limits(recipe, source)))
    joined = mix(forget, [1.0] * len(forget), seed=recipe.seed).dataset
    digests = "".join(digest(part) for part in (joined, *retain))
    return Data(joined, None, None, hashlib.sha256(digests.encode()).hexdigest(), retain or None, counts.pop())


def epochs(recipe: Recipe) -> int:
    """Passes over the rows that a recipe asks for, at least one; ``train.max_steps`` is not looked at."""
    return max(1, math.ceil(recipe.train.get("num_train_epochs", 3)))


def held_out_rows(data: Data, recipe: Recipe) -> list[dict]:
    """Rows of the probe set: of the held-out pairs, or of the training pairs where there are none.

    Labelled answers are probed in pairs, too: the first desirable one with the first undesirable one, and so on.
    """
    from datasets import Dataset

    source = data.held_out if data.held_out is not None else data.train
    if not isinstance(source, Dataset) or not recipe.watch.probe_pairs:
        return []
    if {f"{name}_ids" for name in LABELLED} <= set(source.column_names):
        sides = [np.flatnonzero(rows_with(source, name)).tolist() for name in LABELLED]
        pairs = list(zip(*sides, strict=False))
        chosen = choose_rows(len(pairs), recipe.watch.probe_pairs, recipe.seed)
        return with_other([labelled_pair(source[pairs[i][0]], source[pairs[i][1]]) for i in chosen])
    if not {"chosen_ids", "rejected_ids"} <= set(source.column_names):
        return []
    rows: list[dict] = [source[i] for i in choose_rows(len(source), recipe.watch.probe_pairs, recipe.seed)]
    return with_other(rows)


def digest(dataset: Dataset) -> str:
    """Hex digest of the columns of a prepared data set that reach a loss: token ids, masks, numbers of rows."""
    hasher = hashlib.sha256()
    for name in sorted(c for c in dataset.column_names if c in ROW_VALUES):
        hasher.update(name.encode() + np.asarray(dataset[name][:], dtype=np.float64).tobytes())
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
    known = set(row_digests(held_out, columns))
    return sum(key in known for part in parts for key in row_digests(part, columns))


def _prepared(
    recipe: Recipe, source: Source, tokenizer: Any, branches: Sequence[str], say: Callable[[str], Any], what: str
) -> Any:
    rows = load_source(source, base=recipe.base)
    from datasets import Dataset

    if not branches:  # answers are drawn while training
        if not isinstance(rows, Dataset):
            raise UserError("data.train cannot be streamed here: prompts are shared out. Give it `rows:` instead.")
        say(f"{what}: {source_name(source)}")
        return prompt_rows(rows, tokenizer, say, **_limits(recipe, source))
    with naming(source):
        if what == "train" and recipe.data.convex is not None:
            assert is_table(rows)  # the recipe's checks refuse streams
            rows = asked(rows, tokenizer, branches)
            form = recognise_dataset(rows, branches)
            rows = convex_rows(rows, form, recipe.data.convex, seed=recipe.seed, base=recipe.base, say=say)
        prepared, account = prepare(rows, tokenizer, branches, **_limits(recipe, source))
    if hasattr(prepared, "__len__"):
        say(f"{what}: {source_name(source)}")
        for sentence in account.summary():
            say(f"  {sentence}")
    return prepared


def _limits(recipe: Recipe, source: Source) -> dict[str, Any]:
    limits = {"max_length": recipe.data.max_length, "truncation": recipe.data.truncation, "system": source.system}
    return {**limits, "values": recipe.objective_value().row_values}
