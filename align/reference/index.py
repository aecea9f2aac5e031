"""Where the rows of a store lie: keys of all files in one sorted array, 16 bytes a row in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.reference.shards import KEY, Shard

_PREFIX = 8  # bytes of a key that are kept in memory; the whole key is compared in the file


class Index:
    """Rows of files by their keys. Keys are digests, so that the first bytes of two are alike only by chance."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        found = [np.empty(0, np.uint64)]
        for shard in self.shards:
            found.append(_prefixes(shard.keys))
            shard.let_go()
        prefixes = np.concatenate(found)
        order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[order]
        owners = np.repeat(np.arange(len(self.shards), dtype=np.int32), [len(shard) for shard in self.shards])
        places = [np.arange(len(shard), dtype=np.int32) for shard in self.shards]
        self._owners = owners[order]
        self._places = np.concatenate(places or [np.empty(0, np.int32)])[order]
        self.distinct = len(prefixes) - int(np.count_nonzero(self._prefixes[1:] == self._prefixes[:-1]))

    def one(self, key: bytes) -> tuple[Shard, int] | None:
        """The file and the place of a row; None where there is none."""
        numbers, places = self.find(np.frombuffer(key, np.uint8).reshape(1, KEY))
        return None if numbers[0] < 0 else (self.shards[numbers[0]], int(places[0]))

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the files, -1 where there is none, and places in them, int [n] each, of ``keys`` uint8 [n, 32]."""
        numbers, places = np.full(len(keys), -1), np.zeros(len(keys), dtype=np.int64)
        wanted = _prefixes(keys)
        at = np.searchsorted(self._prefixes, wanted)
        open_ = np.arange(len(keys))
        while True:  # as often as there are keys that begin alike
            inside = at[open_] < len(self._prefixes)
            open_ = open_[inside]
            open_ = open_[self._prefixes[at[open_]] == wanted[open_]]
            if not len(open_):
                return numbers, places
            whole = self._same(keys, open_, at[open_])
            numbers[open_[whole]] = self._owners[at[open_[whole]]]
            places[open_[whole]] = self._places[at[open_[whole]]]
            open_ = open_[~whole]
            at[open_] += 1

    def of(self, numbers: np.ndarray) -> list[Shard]:
        """The files of these numbers, each once."""
        return [self.shards[number] for number in np.unique(numbers[numbers >= 0]).tolist()]

    def let_go(self) -> None:
        """Take what was read of the files out of this process's resident memory."""
        for shard in self.shards:
            shard.let_go()

    def _same(self, keys: np.ndarray, wanted: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Whether the rows at places of the index have the wanted keys, bool [n]."""
        out = np.zeros(len(wanted), dtype=bool)
        owners = self._owners[at]
        for number in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == number)
            held = self.shards[number].keys[self._places[at[mine]]]
            out[mine] = (held == keys[wanted[mine]]).all(axis=1)
        return out


def _prefixes(keys: np.ndarray) -> np.ndarray:
    """The first bytes of keys uint8 [n, 32] as numbers in the order of the keys, uint64 [n]."""
    return np.ascontiguousarray(keys[:, :_PREFIX]).view(">u8").reshape(-1).astype(np.uint64)
