"""Raw rows from where a recipe says they are: the Hub, a local file or folder, or the generated world; and mixtures.

A raw row is whatever the source gives, with the columns renamed as the recipe asks and an integer column ``row`` (its
number in the source, counted from 0). Nothing is tokenised here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from align.data.rows.files import SUFFIXES, USUAL_SPLITS, file_kind, split_of
from align.data.rows.tables import from_files, from_rows, rows_of
from align.errors import UserError
from align.runs.models import gated, hub_refusal, without_waiting
from align.runs.quiet import hushed

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from align.recipe.sections import Source

    AnyDataset = Dataset | IterableDataset

_SPLIT = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def load_source(source: Source, *, base: Path) -> AnyDataset:
    """Raw rows of one source, renamed, cut to its first ``rows`` rows and numbered in the column ``row``.

    ``base`` is the folder that a relative ``path`` is taken from. Returns a map-style ``Dataset``, or an
    ``IterableDataset`` where the source says ``streaming``. Raises ``UserError`` for everything that the user can mend.
    """
    given = [key for key in ("id", "path", "world") if getattr(source, key, None)]
    if len(given) != 1:
        found = " and ".join(given) if given else "none of them"
        raise UserError(f"A data source needs exactly one of id, path and world; found {found}.")
    if source.id:
        dataset = _from_hub(source)
    elif source.path:
        dataset = _from_path(source, base / source.path)
    else:
        dataset = _from_world(source)
    dataset = _first(dataset, source.rows)
    dataset = rename_columns(dataset, source.columns or {}, where=source_name(source))
    return _numbered(dataset)


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Let what is wrong with the rows of a source say which source that is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source_name(source)}: {error}") from error


def source_name(source: Source) -> str:
    """How a source is called in messages, for instance ``ultrafeedback_binarized/train_prefs``."""
    if getattr(source, "world", None):
        return f"world/{source.world if isinstance(source.world, str) else dict(source.world or {}).get('kind')}"
    if source.path and not source.id:
        name, *bounds = _split(source)
        if name != "train":
            return f"{source.path}/{source.split}"
        return str(source.path) + (str(source.split).removeprefix(name) if any(bounds) else "")
    return "/".join(part for part in (source.id, source.subset, source.split) if part)


def column_names(dataset: AnyDataset) -> list[str]:
    """Columns of a data set; a streamed one that does not know them is asked for its first row."""
    if dataset.column_names is not None:
        return list(dataset.column_names)
    return list(next(iter(dataset), {}))


def rename_columns(dataset: AnyDataset, columns: Mapping[str, str], *, where: str) -> AnyDataset:
    """Give the columns of ``columns`` (ours -> theirs) our names. A column of theirs may serve several of ours.

    A column that already has one of our names is replaced. Raises ``UserError`` where one of theirs does not exist.
    """
    columns = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    if not columns:
        return dataset
    names = column_names(dataset)
    for ours, theirs in columns.items():
        if theirs not in names:
            hint = did_you_mean(theirs, names)
            raise UserError(
                f"{where}: columns.{ours} is {theirs!r}, but there is no such column.{hint} "
                f"The columns are: {', '.join(names)}."
            )
    keep = [name for name in names if name not in columns and name not in columns.values()]

    def renamed(batch: Mapping[str, list]) -> dict[str, list]:
        return {**{name: batch[name] for name in keep}, **{ours: batch[theirs] for ours, theirs in columns.items()}}

    if not is_table(dataset):
        return dataset.map(renamed, batched=True, remove_columns=names)
    # Columns put side by side stay where they are; `map` would write all of them anew.
    parts = [dataset.select_columns(keep)] if keep else []
    parts += [dataset.select_columns([theirs]).rename_column(theirs, ours) for ours, theirs in columns.items()]
    return _beside(parts)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A question to append to a message, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def is_table(dataset: AnyDataset) -> TypeGuard[Dataset]:
    """Whether a data set is all there and has a length."""
    from datasets import Dataset

    return isinstance(dataset, Dataset)


def _beside(parts: list[Dataset]) -> Dataset:
    from datasets import concatenate_datasets

    return concatenate_datasets(parts, axis=1)


def _first(dataset: AnyDataset, rows: int | None) -> AnyDataset:
    if rows is None:
        return dataset
    return dataset.select(range(min(rows, len(dataset)))) if is_table(dataset) else dataset.take(rows)


def _numbered(dataset: AnyDataset) -> AnyDataset:
    if not is_table(dataset):
        return dataset.map(lambda row, index: {**row, "row": index}, with_indices=True)
    from datasets import Dataset

    kept = dataset.remove_columns("row") if "row" in dataset.column_names else dataset
    return _beside([kept, Dataset.from_dict({"row": np.arange(len(dataset))})])


# --- the Hub ---------------------------------------------------------------------------------------------------------


def _from_hub(source: Source) -> AnyDataset:
    from datasets import load_dataset

    name, split = str(source.id), source.split or "train"
    try:
        with quiet_hub(), without_waiting():
            if source.streaming:
                return load_dataset(name, source.subset, split=split, revision=source.revision, streaming=True)
            return load_dataset(name, source.subset, split=split, revision=source.revision)
    except Exception as error:  # the Hub client raises a dozen types, not all of them public
        raise UserError(_hub_sentence(source, error)) from error


def quiet_hub() -> AbstractContextManager[None]:
    """Without the Hub client's line for every retry; our own sentence says how it ended."""
    return hushed("huggingface_hub")


def _hub_sentence(source: Source, error: Exception) -> str:
    """What a failed ``load_dataset`` means for the user."""
    from huggingface_hub import is_offline_mode

    if type(error).__name__ == "DatasetGenerationError" and isinstance(error.__cause__, Exception):
        error = error.__cause__  # which file, and what is wrong with it
    text = " ".join(str(error).split())
    at = f" at revision {source.revision}" if source.revision else ""
    kind = type(error).__name__
    if (why := hub_refusal(str(source.id), source.revision, error, "datasets/")) is not None:
        return f"{source.id}: {why}."
    if is_offline_mode() or os.environ.get("HF_HUB_OFFLINE") == "1":
        return (
            f"{source.id}{at}: not in the local cache, and the network is switched off (HF_HUB_OFFLINE). "
            "Load it once with the network on, or give a local copy as `path:`."
        )
    if "script" in text and "support" in text:
        return f"{source.id}{at}: is a loading script, and code from the Hub is not run. Use a Parquet copy of it."
    if "gated dataset" in text:  # the library has cut the chain of errors
        return f"{source.id}: {gated(str(source.id), 'datasets/')}."
    if kind == "DatasetNotFoundError" or "doesn't exist on the Hub" in text:
        return (
            f"{source.id}{at}: no such data set on the Hub, or it is private (then log in first: hf auth login, or "
            "HF_TOKEN). For a file or folder on this machine write `path:` instead of `id:`."
        )
    if isinstance(error, ConnectionError):
        return f"{source.id}{at}: the Hub cannot be reached, and it is not in the local cache ({text})."
    if "Config name is missing" in text or "BuilderConfig" in text:
        return f"{source.id}{at}: subset {source.subset!r} does not fit. {text}"
    if "Unknown split" in text or "split" in text:
        return f"{source.id}{at}: split {source.split or 'train'!r} does not fit. {text}"
    return f"{source.id}{at}: cannot be loaded ({kind}: {text})."


# --- local files -----------------------------------------------------------------------------------------------------


def _from_path(source: Source, path: Path) -> AnyDataset:
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"{path}: no such file or folder.{near}")
    split, start, stop = _split(source)
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        dataset = _saved(path, split)
        return _sliced(dataset.to_iterable_dataset() if source.streaming else dataset, start, stop, source)
    if path.is_dir():
        files = tuple(_files_of(path, split))
    elif split != "train":
        raise UserError(f"{path}: a single file has no splits; leave out split: {source.split}.")
    else:
        files = (path,)
    if source.streaming:
        from datasets import IterableDataset

        # A tuple, not a list: lists are dealt out to workers, and row numbers would begin anew in each of them.
        stream = IterableDataset.from_generator(rows_of, gen_kwargs={"files": files})
        return _sliced(stream, start, stop, source)
    return _sliced(from_files(files, source.rows if start is None and stop is None else None), start, stop, source)


def _split(source: Source) -> tuple[str, str | None, str | None]:
    """Name, start and stop of a split such as ``train[10%:50]``."""
    split = getattr(source, "split", None) or "train"
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise UserError(f"split: {split!r} is not understood; expected a name, or a slice such as train[:100].")
    return match["name"], match["start"], match["stop"]


def _sliced(dataset: AnyDataset, start: str | None, stop: str | None, source: Source) -> AnyDataset:
    if start is None and stop is None:
        return dataset
    if not is_table(dataset):
        raise UserError(f"split: {source.split!r} cannot be sliced while streaming; use rows: for the first so many.")
    size = len(dataset)

    def place(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        value = round(int(bound[:-1]) * size / 100) if bound.endswith("%") else int(bound)
        return min(max(value + size if value < 0 else value, 0), size)

    return dataset.select(range(place(start, 0), place(stop, size)))


def _files_of(folder: Path, split: str) -> list[Path]:
    """The data files of a folder (or of its ``data`` folder) that belong to a split, in the order of their names."""
    inside = folder / "data"
    places = [folder, inside] if inside.is_dir() else [folder]
    files = [p for place in places for p in sorted(place.iterdir()) if p.is_file() and file_kind(p)]
    if not files:
        raise UserError(f"{folder}: holds no data files; expected some of {', '.join(SUFFIXES)} (or .gz).")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file), []).append(file)
    if split in by_split:
        return by_split[split]
    if split == "train" and not any(name in USUAL_SPLITS for name in by_split):
        return files  # names that say nothing about splits: the folder is one data set
    hint = did_you_mean(split, list(by_split))
    raise UserError(f"{folder}: no file of split {split!r}.{hint} There are: {', '.join(sorted(by_split))}.")


def _saved(path: Path, split: str) -> Dataset:
    """What ``save_to_disk`` wrote."""
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"{path}: looks like a saved data set, but cannot be loaded ({error}).") from error
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            names = [str(name) for name in loaded]
            hint = did_you_mean(split, names)
            raise UserError(f"{path}: no split {split!r}.{hint} There are: {', '.join(names)}.")
        return loaded[split]
    if split != "train":
        raise UserError(f"{path}: holds one data set without splits; leave out split: {split}.")
    return loaded


# --- the generated world ----------------------------------------------------------------------------------------------


def _from_world(source: Source) -> AnyDataset:
    from align.data.rows import world

    given: dict[str, Any] = {"kind": source.world} if isinstance(source.world, str) else dict(source.world or {})
    unknown = sorted(set(given) - {"kind", "seed", "size"})
    seed = given.get("seed", 0)
    if unknown or "kind" not in given or not isinstance(seed, int):
        raise UserError(f"world: {given} is not understood; expected world: KIND or world: {{kind: KIND, seed: 0}}.")
    dataset = from_rows(world.rows(given["kind"], seed, given.get("size")))
    return dataset.to_iterable_dataset() if source.streaming else dataset
