"""Checkpoints of a run: each is complete, or it counts as if it were not there.

A checkpoint is complete by its marker, ``complete.json``, which is written when every other file is on the disk. It
names each of them with its size and digest, and says which run wrote it, at which step, and on how many processes.
Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from align.outside.files import json_file
from align.outside.limits import JSON
from align.runs.files import digest_of, sync_folder, write_atomically

MARKER = "complete.json"
_WRITING = ".writing"  # in a checkpoint that is being written: the id of the run that writes it
_REMOVED = ".removed-"  # a folder that is being removed
_NAME = re.compile(r"checkpoint-(\d+)")
_THREADS = 8  # that read files side by side; the digest itself runs outside of Python's lock

Files = dict[str, dict[str, Any]]  # relative name to {"bytes": size, "sha256": hex digest}


class Damaged(Exception):
    """A checkpoint that must not be used; the message is the reason, as the end of a sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """What the marker of a checkpoint says.

    Attributes:
        path: its folder.
        run: the id of the run that wrote it.
        step: optimizer steps that were done.
        processes, backend: how training was shared out; see ``launch.backend``.
        files: every file but the marker.
    """

    path: Path
    run: str
    step: int
    processes: int
    backend: str
    files: Files


def step_of(folder: Path) -> int:
    """The optimizer step that a checkpoint is named after; -1 for folders that are no checkpoints."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else -1


def folders(run: Path) -> list[Path]:
    """All folders that are named like checkpoints, oldest first, complete or not."""
    found = [path for path in run.glob("checkpoint-*") if step_of(path) >= 0 and path.is_dir()]
    return sorted(found, key=step_of)


def complete_ones(run: Path, run_id: str) -> list[Checkpoint]:
    """Complete checkpoints of a run, oldest first; digests are not looked at."""
    found = []
    for folder in folders(run):
        try:
            found.append(read(folder, run_id))
        except Damaged:
            continue
    return found


def read(folder: Path, run_id: str | None) -> Checkpoint:
    """The marker of a checkpoint of the run ``run_id`` (None: of any), whose files are there and as long as it says.

    Raises:
        Damaged: with the reason.
    """
    marker = _marker(folder)
    if marker.step != step_of(folder):
        raise Damaged(f"{MARKER} is that of step {marker.step:,}")
    if run_id is not None and marker.run != run_id:
        raise Damaged("it belongs to another run")
    there = sizes(folder)
    for name, about in marker.files.items():
        if name not in there:
            raise Damaged(f"{name} is gone")
        if there[name] != about["bytes"]:
            raise Damaged(f"{name} has {there[name]:,} bytes and not {about['bytes']:,}")
    if added := sorted(set(there) - set(marker.files)):
        raise Damaged(f"{added[0]} was put there later")
    return marker


def _marker(folder: Path) -> Checkpoint:
    """The marker as it stands. Raises Damaged."""
    try:
        found = json_file(folder / MARKER, JSON)
    except FileNotFoundError:
        raise Damaged(f"it has no {MARKER}, so it was never finished or is none of this program's") from None
    except OSError as error:
        raise Damaged(f"{MARKER} cannot be read ({error.strerror})") from None
    except ValueError:
        raise Damaged(f"{MARKER} is damaged") from None
    if not isinstance(found, dict) or found.pop("sha256", None) != _digest_of(found):
        raise Damaged(f"{MARKER} is damaged")
    try:
        marker = Checkpoint(folder, **found)
        sound = isinstance(marker.step, int) and isinstance(marker.processes, int) and isinstance(marker.backend, str)
        sound = sound and all({"bytes", "sha256"} == set(about) for about in marker.files.values())
    except (TypeError, AttributeError):
        sound = False
    if not sound:
        raise Damaged(f"{MARKER} is of another version of this program")
    return marker


def _digest_of(values: Mapping[str, Any]) -> str:
    """Hex digest of a marker's own content."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of everything in a checkpoint but its marker, by name relative to it."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            relative = file.relative_to(folder).as_posix()
            if relative not in (MARKER, _WRITING):
                found[relative] = file.lstat().st_size
    return found


def share(weights: Mapping[str, int], rank: int, world: int) -> list[str]:
    """The names that a process reads, so that all of them read about as many bytes."""
    loads, mine = [0] * world, []
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        least = loads.index(min(loads))
        loads[least] += weights[name]
        if least == rank:
            mine.append(name)
    return mine


def digests(folder: Path, names: Sequence[str], *, sync: bool = False) -> Files:
    """Size and digest of files, read side by side; with ``sync`` they are on the disk when it returns.

    Raises:
        OSError: where one cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda name: _look(folder / name, sync=sync), names)
        return dict(zip(names, found, strict=True))


def _look(path: Path, *, sync: bool) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = digest_of(file)
        if sync:
            os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest}


def changed(checkpoint: Checkpoint, names: Sequence[str]) -> list[str]:
    """Those of ``names`` whose content is not what the marker says, or cannot be read."""

    def differs(name: str) -> bool:
        try:
            return _look(checkpoint.path / name, sync=False) != checkpoint.files[name]
        except OSError:
            return True

    with ThreadPoolExecutor(_THREADS) as threads:
        return [name for name, wrong in zip(names, threads.map(differs, names), strict=True) if wrong]


# ---- writing and removing, on the writing process


def begin(folder: Path, run_id: str) -> bool:
    """Make the folder of a checkpoint that will be written; whether another one, not complete, was in its place."""
    replaces = folder.exists()
    if replaces:
        remove(folder)
    folder.mkdir(parents=True)
    write_atomically(folder / _WRITING, run_id)
    return replaces


def finish(checkpoint: Checkpoint) -> None:
    """Write the marker of a checkpoint whose files are on the disk: from here on it counts."""
    for place, _, _ in os.walk(checkpoint.path):
        sync_folder(Path(place))
    sync_folder(checkpoint.path.parent)
    values = {key: value for key, value in asdict(checkpoint).items() if key != "path"}
    marker = {**values, "sha256": _digest_of(values)}
    write_atomically(checkpoint.path / MARKER, json.dumps(marker, indent=1) + "\n")
    (checkpoint.path / _WRITING).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove a checkpoint: all of it at once for whoever looks, and what a kill leaves of it at the next start."""
    gone = folder.with_name(f"{_REMOVED}{folder.name}.{uuid4().hex}")
    os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def rotate(run: Path, run_id: str, limit: int | None, best: str | None) -> None:
    """Remove the oldest complete checkpoints beyond ``limit`` (None: keep all), but neither the newest nor ``best``."""
    found = [checkpoint.path for checkpoint in complete_ones(run, run_id)]
    if limit is None or len(found) <= limit:
        return
    kept = {found[-1].name} | ({Path(best).name} if best is not None else set())
    spare = [folder for folder in found if folder.name not in kept]
    for folder in spare[: len(found) - max(limit, len(kept))]:
        remove(folder)


def sweep(run: Path, run_id: str) -> list[str]:
    """Remove what a kill left: half-written checkpoints of this run, and temporary files; sentences say what."""
    said = []
    for folder in folders(run):
        try:
            mine = (folder / _WRITING).read_text() == run_id
        except (OSError, UnicodeDecodeError):
            continue
        if (folder / MARKER).exists():  # killed between the last two strokes
            (folder / _WRITING).unlink(missing_ok=True)
        elif mine:
            remove(folder)
            said.append(f"{folder.name} was being written when the run ended: removed")
    if count := _clear(_leftovers(run)):
        said.append(f"{count} temporary file{'s' * (count != 1)} of an interrupted run removed")
    return said


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}|\.rehearsal-\w+")


def _leftovers(run: Path) -> Iterable[Path]:
    """Temporary files and folders that a run makes and a kill leaves."""
    for place, below, names in os.walk(run):
        found = [name for name in (*below, *names) if _TEMPORARY.fullmatch(name)]
        below[:] = [name for name in below if name not in found]
        yield from (Path(place, name) for name in found)


def _clear(paths: Iterable[Path]) -> int:
    """Remove files and folders; how many there were."""
    count = 0
    for path in list(paths):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()
        count += 1
    return count
