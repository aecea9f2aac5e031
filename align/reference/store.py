"""Reference log-probs on disk, float32 per token, addressed by content.

A folder belongs to one way of computing (weights, configuration, adapters, quantisation, compute type); a row in it to
one sequence of token ids. So a sweep over losses, rates, batch sizes or order pays for the reference once. Files are
safetensors, written whole or not at all, and carry a digest of their content: a damaged one is said aloud and computed
again. Any number of processes may read and add at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from align.engine.layout import Branch, Tree

_FLUSH_ROWS = 4096


def sequence_key(tree: Tree, branch: Branch) -> bytes:
    """32 bytes that name a prompt, an answer and its target mask."""
    hasher = hashlib.sha256()
    for part in (tree.prompt, branch.ids, branch.mask or ()):
        values = np.asarray(part, dtype=np.int64)
        hasher.update(len(values).to_bytes(8, "little"))
        hasher.update(values.tobytes())
    return hasher.digest()


class LogProbStore:
    """Per-token log-probs of one frozen model.

    Args:
        root: folder of all stores; this one lies in ``root/<model key>``.
        key: hex digest of everything that makes the model compute what it does.
        about: what the key stands for, written beside the data for people.
        say: where sentences go.
    """

    def __init__(self, root: Path, key: str, about: dict | None = None, say: Callable[[str], None] = print) -> None:
        self.folder = Path(root) / key[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.say = say
        self.rows_read = 0
        self.rows_computed = 0
        self._values: dict[bytes, np.ndarray] = {}
        self._new: dict[bytes, np.ndarray] = {}
        self._waiting: dict[bytes, None] = {}
        self._packs: list[tuple[Sequence[bytes], Sequence[int], Tensor]] = []
        self._seen: set[str] = set()
        about_file = self.folder / "about.json"
        if about and not about_file.exists():
            _write(about_file, json.dumps(about, indent=1, sort_keys=True).encode())
        self.refresh()

    def __len__(self) -> int:
        return len(self._values) + len(self._waiting)

    def __contains__(self, key: bytes) -> bool:
        return key in self._values or key in self._waiting

    def refresh(self) -> None:
        """Read files that have come since, from this process or others."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            try:
                self._load(path)
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                self.say(
                    f"reference store: {path.name} is damaged ({error}); its rows will be computed again "
                    "and the file is removed."
                )
                path.unlink(missing_ok=True)
            self._seen.add(path.name)

    def get(self, key: bytes) -> np.ndarray:
        """Log-probs float32 [T] of a stored sequence."""
        if key in self._waiting:
            self._settle()
        self.rows_read += 1
        return self._values[key]

    def put(self, keys: Sequence[bytes], counts: Sequence[int], values: Tensor) -> None:
        """Add computed sequences, whose ``values`` [sum of counts] lie behind one another.

        They stay on their device until somebody asks for them, so that a step need not wait; they reach the disk with
        the next ``flush``.
        """
        self.rows_computed += len(keys)
        self._packs.append((keys, counts, values.detach()))
        self._waiting |= dict.fromkeys(key for key in keys if key not in self._values)
        if len(self._new) + len(self._waiting) >= _FLUSH_ROWS:
            self.flush()

    def _settle(self) -> None:
        """Take the values of all sequences off their device."""
        for keys, counts, values in self._packs:
            parts = np.split(values.float().cpu().numpy(), np.cumsum(counts)[:-1])
            for key, part in zip(keys, parts, strict=True):
                if key not in self._values:
                    self._values[key] = self._new[key] = np.ascontiguousarray(part)
        self._packs, self._waiting = [], {}

    def flush(self) -> None:
        """Write what is new as one file, atomically, named after its content."""
        self._settle()
        if not self._new:
            return
        keys = sorted(self._new)
        tensors = _tensors(keys, [self._new[k] for k in keys])
        digest = _digest(tensors)
        name = f"{digest[:32]}.safetensors"
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        os.close(handle)
        save_file(tensors, temporary, metadata={"digest": digest})
        os.replace(temporary, self.folder / name)
        self._seen.add(name)
        self._new = {}

    def _load(self, path: Path) -> None:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in ("keys", "ends", "values")}
            expected = (file.metadata() or {}).get("digest")
        if _digest(tensors) != expected:
            raise ValueError("its content does not match its digest")
        start = 0
        for key, end in zip(tensors["keys"], tensors["ends"].tolist(), strict=True):
            self._values[key.tobytes()] = tensors["values"][start:end]
            start = end


def _tensors(keys: Sequence[bytes], values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 32).copy(),
        "ends": np.cumsum([len(v) for v in values], dtype=np.int64),
        "values": np.concatenate(values),
    }


def _digest(tensors: dict[str, np.ndarray]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(np.ascontiguousarray(tensors[name]).tobytes())
    return hasher.hexdigest()


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
