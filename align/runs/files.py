"""Files that are written whole or not at all, and are on the disk when it is said so."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


def cache_folder() -> Path:
    """Where what can be made again is kept between runs: ``XDG_CACHE_HOME``, else ``~/.cache``, in ``align``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "align"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never a part, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")  # with the rights of any new file, unlike mkstemp's
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def digest_of(file: BinaryIO) -> str:
    """Hex SHA-256 of an open file from where it stands to its end, a mebibyte in memory at a time."""
    hasher = hashlib.sha256()
    while block := file.read(1 << 20):
        hasher.update(block)
    return hasher.hexdigest()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, so that a power cut does not undo a rename."""
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(place)
