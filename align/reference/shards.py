"""Files of the log-prob store: one each for some rows, memory-mapped, and believed once their digest was compared.

A file is a safetensors file with ``keys`` uint8 [n, 32], sorted, ``ends`` int64 [n] and ``values`` float32: the
log-probs of row i end at ``ends[i]``. Nothing of it is copied into memory.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from align.outside.files import opened, parsed
from align.outside.limits import STORE_HEADER

KEY = 32  # bytes that name a row
_KINDS = {"keys": ("U8", np.uint8), "ends": ("I64", np.int64), "values": ("F32", np.float32)}


class Damaged(Exception):
    """A file that does not hold what it says."""


class Shard:
    """One file of a store.

    Args:
        path: the file.

    Raises:
        OSError: where it cannot be read.
        Damaged: where its header says something else than its size; its values are not looked at.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise Damaged("it is cut off")
            # mapped, so that rows outlive the file's name; an open file would count against the process's limit
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(self._map[:8], "little")
        if length > min(size - 8, STORE_HEADER):
            raise Damaged("it is cut off, or no file of a store")
        try:
            header = parsed(self._map[8 : 8 + length])
            self._digest = str(header["__metadata__"]["digest"])
            self.keys, self.ends, self._values = (self._array(header[name], name, 8 + length) for name in _KINDS)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"its header cannot be read: {type(error).__name__}") from None
        self._verified = False
        if self.keys.shape != (len(self.ends), KEY) or self._values.ndim != 1:
            raise Damaged("its parts do not go together")

    def __len__(self) -> int:
        return len(self.ends)

    def _array(self, entry: Any, name: str, start: int) -> np.ndarray:
        kind, dtype = _KINDS[name]
        begin, end = entry["data_offsets"]
        if entry["dtype"] != kind or not 0 <= begin <= end <= len(self._map) - start:
            raise Damaged("it is cut off, or no file of a store")
        flat = np.frombuffer(self._map, dtype, (end - begin) // np.dtype(dtype).itemsize, start + begin)
        return flat.reshape(entry["shape"])

    def verify(self) -> None:
        """Compare the digest of all that the file holds, at the first call. Raises ``Damaged``."""
        if self._verified:
            return
        if digest({"keys": self.keys, "ends": self.ends, "values": self._values}) != self._digest:
            raise Damaged("its content does not match its digest")
        self._verified = True

    def row(self, place: int) -> np.ndarray:
        """Log-probs float32 [T] of a row, copied. Raises ``Damaged``."""
        self.verify()
        start = 0 if place == 0 else int(self.ends[place - 1])
        return self._values[start : int(self.ends[place])].copy()

    def let_go(self) -> None:
        """Take what was read out of this process's resident memory; it is read from the disk again when needed."""
        self._map.madvise(mmap.MADV_DONTNEED)


def write(folder: Path, keys: Sequence[bytes], rows: Sequence[np.ndarray]) -> Path:
    """Write rows as one file, atomically, named after its content; ``keys`` are sorted. Raises ``OSError``."""
    tensors: dict[str, np.ndarray] = {
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), KEY).copy(),
        "ends": np.cumsum([len(row) for row in rows], dtype=np.int64),
        "values": np.concatenate(rows),
    }
    name = digest(tensors)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"digest": name})
        os.replace(temporary, folder / f"{name[:32]}.safetensors")
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return folder / f"{name[:32]}.safetensors"


def digest(tensors: dict[str, np.ndarray]) -> str:
    """Hex digest of everything that a file holds."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(np.ascontiguousarray(tensors[name]).data)
    return hasher.hexdigest()
