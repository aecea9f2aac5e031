"""How much of prepared data sets the store of reference log-probs holds, without making a Python row of any."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from align.data.batches.lengths import rows_with
from align.data.rows.lists import Lists
from align.objectives.base import FRESH, Objective, source_of, sources_of
from align.reference.shards import KEY
from align.reference.store import LogProbStore

_AT_ONCE = 4096


class Coverage(NamedTuple):
    """Reference rows (answers) of the data sets that are stored, and that must be computed."""

    stored: int
    computed: int


def coverage_of(store: LogProbStore | None, objective: Objective, datasets: Sequence[Any]) -> Coverage | None:
    """How much of the data sets the store holds; None where that cannot be known beforehand."""
    flat = [d for entry in datasets if entry is not None for d in _parts(entry)]
    needed = sources_of(objective.reference_branches)
    if any(not hasattr(d, "__len__") or not {f"{name}_ids" for name in needed} <= set(d.column_names) for d in flat):
        return None
    if store is None or not len(store):
        return Coverage(0, sum(int(rows_with(d, name).sum()) for d in flat for name in needed))
    stored = total = 0
    for dataset in flat:
        for keys in answer_keys(dataset, objective.reference_branches):
            stored += int(np.count_nonzero(store.stored(keys)))
            total += len(keys)
    return Coverage(stored, total - stored)


def answer_keys(dataset: Any, branches: Sequence[str]) -> Iterator[np.ndarray]:
    """Keys, uint8 [n, 32], of the answers of prepared rows: ``sequence_key`` of what ``TreeCollator`` makes of them."""
    for chunk in dataset.with_format("arrow").iter(_AT_ONCE):
        for name in (branch for branch in branches if branch not in FRESH):
            source = source_of(name)
            own = f"{source}_prompt_ids"
            prompts = Lists(chunk, own if own in chunk.column_names else "prompt_ids")
            if prompts.missing.any():  # rows without a prompt of their own share the row's
                prompts = prompts.or_else(Lists(chunk, "prompt_ids"))
            answers = Lists(chunk, f"{source}_ids")
            masks = Lists(chunk, f"{name}_mask") if source == name and f"{name}_mask" in chunk.column_names else None
            rows = np.flatnonzero(~answers.missing)
            key = _key if source == name else _key_of_all
            digests = b"".join(key(prompts[i], answers[i], masks[i] if masks else _NOTHING) for i in rows.tolist())
            yield np.frombuffer(digests, np.uint8).reshape(-1, KEY)


_NOTHING = np.empty(0, np.int64)


def _key(prompt: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> bytes:
    hasher = hashlib.sha256()
    for part in (prompt, ids, mask):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part.data)
    return hasher.digest()


def _key_of_all(prompt: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> bytes:
    """Of a branch whose every token but the first is a target."""
    return _key(prompt[:1], np.concatenate((prompt[1:], ids)), mask)


def _parts(entry: Any) -> list[Any]:
    return list(entry.values()) if isinstance(entry, dict) else [entry]
