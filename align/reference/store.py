"""Reference log-probs on disk, float32 per token, addressed by content.

A folder belongs to one way of computing (weights, configuration, adapters, quantisation, compute type); a row in it to
one sequence of token ids. So a sweep over losses, rates, batch sizes or order pays for the reference once. Files
(``shards``) are written whole or not at all and are memory-mapped; of a row that is on disk, memory holds its place
alone. A file is compared with its digest before its first row is read: a damaged one is said aloud and its rows are
computed again. Any number of processes may read and add at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from align.engine.layout import Branch, Tree
from align.reference.index import Index
from align.reference.shards import Damaged, Shard, write

_FLUSH_ROWS = 4096
_MOST_IN_MEMORY = 16 * _FLUSH_ROWS  # rows that wait for a disk to take them; beyond that they are forgotten
_LET_GO = 512  # rows read, after which what was mapped of them leaves this process's memory
_LEFT_SECONDS = 3600.0  # a file is written in less


def sequence_key(tree: Tree, branch: Branch) -> bytes:
    """32 bytes that name a prompt, an answer and its target mask."""
    hasher = hashlib.sha256()
    for part in (tree.prompt, branch.ids, branch.mask or ()):
        values = np.asarray(part, dtype=np.int64)
        hasher.update(len(values).to_bytes(8, "little"))
        hasher.update(values.tobytes())
    return hasher.digest()


class LogProbStore:
    """Per-token log-probs of one frozen model. It is a cache: what is wrong with it is said, and never raised.

    Args:
        root: folder of all stores; this one lies in ``root/<model key>``.
        key: hex digest of everything that makes the model compute what it does.
        about: what the key stands for, written beside the data for people.
        say: where sentences go.
    """

    def __init__(self, root: Path, key: str, about: dict | None = None, say: Callable[[str], None] = print) -> None:
        self.folder = Path(root) / key[:32]
        self.say = say
        self.rows_read = 0
        self.rows_computed = 0
        self._index = Index([])
        self._new: dict[bytes, np.ndarray] = {}
        self._waiting: dict[bytes, None] = {}
        self._packs: list[tuple[Sequence[bytes], Sequence[int], Tensor]] = []
        self._seen: set[str] = set()
        self._said: set[str] = set()
        self._flush_at = _FLUSH_ROWS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            about_file = self.folder / "about.json"
            if about and not about_file.exists():
                _write(about_file, json.dumps(about, indent=1, sort_keys=True).encode())
        except OSError as error:
            self._cannot("written", error, "what is computed is not kept there")
        self.refresh()

    def __len__(self) -> int:
        return self._index.distinct + len(self._new) + len(self._waiting)

    def __contains__(self, key: bytes) -> bool:
        return key in self._new or key in self._waiting or self._found(key) is not None

    def __iter__(self) -> Iterator[bytes]:
        """Every key that has a row on disk or in memory."""
        on_disk = {key.tobytes() for shard in self._index.shards for key in shard.keys}
        return iter(sorted(on_disk | self._new.keys() | self._waiting.keys()))

    def refresh(self) -> None:
        """Look for files that have come since, from this process or others."""
        try:
            paths = sorted(path for path in self.folder.glob("*.safetensors") if path.name not in self._seen)
        except OSError as error:
            self._cannot("read", error, "rows are computed")
            return
        come = []
        for path in paths:
            self._seen.add(path.name)
            try:
                come.append(Shard(path))
            except Damaged as error:
                self._refuse(path, error)
            except OSError as error:
                self._cannot("read", error, "its rows are computed again", path)
        if come:
            self._index = Index([*self._index.shards, *come])

    def get(self, key: bytes) -> np.ndarray:
        """Log-probs float32 [T] of a stored sequence. Raises ``KeyError``."""
        if key in self._waiting:
            self._settle()
        self.rows_read += 1
        if self.rows_read % _LET_GO == 0:
            self._index.let_go()
        if key in self._new:
            return self._new[key]
        if (found := self._found(key)) is None:
            raise KeyError(key.hex())
        shard, place = found
        return shard.row(place)

    def stored(self, keys: np.ndarray) -> np.ndarray:
        """Which of many keys, uint8 [n, 32], have a row that can be relied on, bool [n].

        The files that hold them are compared with their digests, all others are not read.
        """
        while True:
            numbers, _ = self._index.find(keys)
            bad = [shard for shard in self._index.of(numbers) if not self._sound(shard)]
            if not bad:
                self._index.let_go()
                pending = self._new.keys() | self._waiting.keys()
                return (numbers >= 0) | np.array([bool(pending) and key.tobytes() in pending for key in keys], bool)

    def put(self, keys: Sequence[bytes], counts: Sequence[int], values: Tensor) -> None:
        """Add computed sequences, whose ``values`` [sum of counts] lie behind one another.

        They stay on their device until somebody asks for them, so that a step need not wait; they reach the disk with
        the next ``flush``.
        """
        self.rows_computed += len(keys)
        self._packs.append((keys, counts, values.detach()))
        self._waiting |= dict.fromkeys(key for key in keys if key not in self)
        if len(self._new) + len(self._waiting) >= self._flush_at:
            self.flush()

    def _settle(self) -> None:
        """Take the values of all sequences off their device."""
        for keys, counts, values in self._packs:
            parts = np.split(values.float().cpu().numpy(), np.cumsum(counts)[:-1])
            for key, part in zip(keys, parts, strict=True):
                if key in self._waiting:
                    self._new[key] = np.ascontiguousarray(part)
        self._packs, self._waiting = [], {}

    def flush(self) -> None:
        """Write what is new as one file. Where that fails, it is kept in memory and tried again with later rows."""
        self._settle()
        if not self._new:
            return
        keys = sorted(self._new)
        try:
            path = write(self.folder, keys, [self._new[key] for key in keys])
            come = Shard(path)
        except (OSError, SafetensorError, Damaged) as error:
            self._cannot("written", error, "what is computed is not kept there")
            if len(self._new) >= _MOST_IN_MEMORY:
                self._new = {}
            self._flush_at = len(self._new) + _FLUSH_ROWS
            return
        self._new, self._flush_at = {}, _FLUSH_ROWS
        if path.name not in self._seen:
            self._seen.add(path.name)
            self._index = Index([*self._index.shards, come])

    def _found(self, key: bytes) -> tuple[Shard, int] | None:
        """The file that holds a row, its digest compared, and the row's place in it."""
        while (found := self._index.one(key)) is not None:
            if self._sound(found[0]):
                return found
        return None

    def _sound(self, shard: Shard) -> bool:
        """Whether a file is what it says; else it is said, and the file is left out from now on."""
        try:
            shard.verify()
        except Damaged as error:
            self._refuse(shard.path, error)
            self._index = Index([other for other in self._index.shards if other is not shard])
            return False
        return True

    def _refuse(self, path: Path, error: Damaged) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            outcome = "its rows will be computed again."
        else:
            outcome = "its rows will be computed again and the file is removed."
        self.say(f"reference store: {path.name} is damaged ({error}); {outcome}")

    def _cannot(self, what: str, error: Exception, outcome: str, path: Path | None = None) -> None:
        """Say once what cannot be done."""
        place = path or self.folder
        if what not in self._said:
            self._said.add(what)
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            self.say(f"reference store: {place} cannot be {what} ({reason}); {outcome}.")

    def _remove_leftovers(self) -> None:
        """Remove what processes that were killed had begun to write."""
        for path in self.folder.glob("*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # one that another process has just given its name
                if time.time() - path.stat().st_mtime > _LEFT_SECONDS:
                    path.unlink()


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
