"""What was made of rows, kept on disk by what it was made of: read rows and prepared ones.

An entry is a folder with a table (``rows.arrow``), which is memory-mapped, and ``entry.json``: the digest of the table
and facts about it. It is written beside its place and renamed, so that it is there whole or not at all. One process at
a time makes an entry and the others wait for it, be they ranks of a run or other runs. A damaged entry is named and
made again; a folder that cannot be written is named and done without. Nothing in it is ever run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from align.errors import told
from align.runs.files import digest_of
from align.runs.parallel import apart
from align.runs.terminal import aside
from align.versions import DISTRIBUTION, installed

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

WORTH = 1 << 20  # bytes of rows from which an entry is kept; fewer are made again in no time
_TABLE, _ENTRY = "rows.arrow", "entry.json"
_CHUNK = 4096  # rows that a digest is taken of at a time
_POLL_SECONDS = 0.1
_SAY_SECONDS = 5.0  # of waiting for another process, until that is said
_WORDS = ("tokenizers", "transformers", "Jinja2", "datasets", "pyarrow", DISTRIBUTION)
_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


class Made(NamedTuple):
    """A table and what is to be known of it, as plain JSON."""

    table: pa.Table
    facts: dict[str, Any]


def folder() -> Path:
    """Where entries lie: in the cache of ``datasets``, so that HF_DATASETS_CACHE and HF_HOME move both."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "align"


def key_of(*parts: Any) -> str:
    """The name of an entry: a digest of plain values, of this code and of the packages that it stands on."""
    text = json.dumps([_code(), *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache
def _code() -> list[Any]:
    """Digest of our own files that read and prepare rows, and versions of other packages."""
    hasher = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        hasher.update(file.read_bytes())
    return [hasher.hexdigest(), *(installed(name) for name in _WORDS)]


def file_digest(path: Path) -> str:
    """Hex digest of a file's bytes. Raises ``OSError``."""
    with path.open("rb") as file:
        return digest_of(file)


def table_digest(dataset: Dataset) -> tuple[str, int]:
    """Hex digest of names, types and values of a data set, whatever it was made of, and its size in bytes."""
    hasher, size = hashlib.sha256(), 0
    schema = dataset.features.arrow_schema
    hasher.update(str(schema).encode() + str(schema.metadata).encode())
    for chunk in dataset.with_format("arrow").iter(_CHUNK):
        for batch in chunk.combine_chunks().to_batches():
            content = batch.serialize()
            hasher.update(content)
            size += len(content)
        let_go()
    return hasher.hexdigest(), size


def made_of(dataset: Dataset, facts: dict[str, Any]) -> Made:
    """An entry of a data set."""
    table: Any = dataset.with_format("arrow")[:]
    return Made(table.replace_schema_metadata(dataset.features.arrow_schema.metadata), facts)


def kept(key: str, make: Callable[[bool], Made], say: Callable[[str], Any] = aside) -> Made:
    """The entry of ``key``, made where it is not there. ``make`` may raise, and nothing is kept then.

    It is told whether it is the only one at work, since the other processes wait for what it makes.
    """
    place = folder() / key
    if (found := _opened(place, say)) is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_turn(place, say))
        except OSError as error:
            say(_without(place.parent, error))
            return make(False)
        if (found := _opened(place, say)) is not None:  # another process was at it
            return found
        if apart(lambda: _write(place, make(True))) and (found := _opened(place, say)) is not None:
            return found
        made = make(True)
        try:
            _write(place, made)
        except OSError as error:
            say(_without(place.parent, error))
        return made


def as_dataset(made: Made) -> Dataset:
    """A data set of an entry. ``datasets`` takes it for one in memory, and so writes nothing beside the entry."""
    from datasets import Dataset, DatasetInfo, Features
    from datasets.table import InMemoryTable

    features = Features.from_arrow_schema(made.table.schema)
    fingerprint = made.facts.get("digest")  # else `datasets` takes one of all the rows
    return Dataset(InMemoryTable(made.table), info=DatasetInfo(features=features), fingerprint=fingerprint)


def _without(place: Path, error: OSError) -> str:
    return (
        f"prepared rows cannot be kept in {place} ({error.strerror or error}), so every start prepares them anew. "
        "HF_DATASETS_CACHE names another folder."
    )


def _opened(place: Path, say: Callable[[str], Any]) -> Made | None:
    """The entry at ``place``; None where there is none. A damaged one is named and taken away."""
    import pyarrow as pa

    if not place.is_dir():
        return None
    try:
        entry = json.loads((place / _ENTRY).read_bytes())
        facts, expected = dict(entry["facts"]), entry["digest"]
        if file_digest(place / _TABLE) != expected:
            raise ValueError("its content does not match its digest")
        with (place / _TABLE).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        say(f"prepared rows: {place} is damaged ({told(error)}), so they are prepared again.")
        with contextlib.suppress(OSError):
            shutil.rmtree(place)
        return None
    _MAPPED.add(mapped)
    return Made(table, {**facts, "digest": expected})


@contextlib.contextmanager
def _turn(place: Path, say: Callable[[str], Any]) -> Iterator[None]:
    """Be the only process that makes this entry. A process that is killed gives its turn back."""
    with open(place.with_suffix(".lock"), "ab") as file:
        asked, said = time.monotonic(), False
        while not _locked(file.fileno()):
            if not said and time.monotonic() - asked > _SAY_SECONDS:
                say("prepared rows: another process is preparing the same rows; waiting for it")
                said = True
            time.sleep(_POLL_SECONDS)
        for left in place.parent.glob(f"{place.name}.*.tmp"):  # of a process that was killed: it is our turn
            shutil.rmtree(left, ignore_errors=True)
        yield


def _locked(file: int) -> bool:
    """Whether the lock is ours now. A file system without locks has none to wait for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # two processes may make the same entry then, and the second one's is left aside
    return True


def _write(place: Path, made: Made) -> None:
    """Write an entry atomically. Raises ``OSError``."""
    import pyarrow as pa

    making = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        making.mkdir()
        with pa.OSFile(str(making / _TABLE), "wb") as file, pa.ipc.new_stream(file, made.table.schema) as writer:
            writer.write_table(made.table, max_chunksize=_CHUNK)
        entry: Mapping[str, Any] = {"digest": file_digest(making / _TABLE), "facts": made.facts}
        (making / _ENTRY).write_text(json.dumps(entry, ensure_ascii=False), encoding="utf-8")
        for file_name in (_TABLE, _ENTRY):
            _settled(making / file_name)
        try:
            making.rename(place)
        except OSError:
            if not place.is_dir():  # else another process was faster, where the file system has no locks
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _settled(path: Path) -> None:
    """Let a file reach the disk before its folder gets its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def let_go() -> None:
    """Take what was read of entries out of this process's resident memory; what is read again comes from the disk."""
    for mapped in _MAPPED:
        mapped.madvise(mmap.MADV_DONTNEED)
