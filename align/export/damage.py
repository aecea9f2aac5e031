"""Whether a folder still holds what was written, by the digests that lie beside it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.export.names import ABOUT, DOCUMENTS, WEIGHTS, belongs
from align.runs import checkpoints
from align.runs.damage import json_object
from align.runs.directory import LOCK


def damage(folder: Path) -> str | None:
    """What is wrong with an export or a run's checkpoint, as the end of a sentence, and the cure; None where nothing
    is, or nothing tells. A card and other documents may have been changed since.
    """
    if checkpoints.step_of(folder) >= 0 and (folder.parent / LOCK).is_file():
        why, cure = _of_checkpoint(folder), "Name another checkpoint, or the run."
    else:
        why, cure = _of_export(folder), f"Make it anew, or if the change is meant, remove {folder / ABOUT}."
    return None if why is None else f"{why}. {cure}"


def _of_checkpoint(folder: Path) -> str | None:
    try:
        marker = checkpoints.read(folder, None)
    except checkpoints.Damaged as error:
        return str(error)
    return _differing(folder, marker.files, checkpoints.MARKER)


def _of_export(folder: Path) -> str | None:
    if not (folder / ABOUT).is_file():
        return None
    about = json_object((folder / ABOUT).read_bytes())
    files: Any = (about or {}).get("files")
    if not isinstance(files, dict) or not all(isinstance(one, dict) and "sha256" in one for one in files.values()):
        return f"{ABOUT} is damaged"
    added = (path.name for path in sorted(folder.iterdir()) if belongs(Path(path.name), WEIGHTS))
    if (later := next((name for name in added if name not in files), None)) is not None:
        return f"{later} was put there later"
    return _differing(folder, files, ABOUT)


def _differing(folder: Path, files: Mapping[str, Mapping[str, Any]], where: str) -> str | None:
    """The first file of an export that is gone, or not as ``where`` says."""
    names = [name for name in files if belongs(Path(name)) and not belongs(Path(name), DOCUMENTS)]
    for name in names:
        if not (folder / name).is_file():
            return f"{name} is gone"
        size = (folder / name).stat().st_size
        if size != files[name].get("bytes", size):
            return f"{name} has {size:,} bytes and not {files[name]['bytes']:,}"
    found = checkpoints.digests(folder, names)
    changed = next((name for name in names if found[name]["sha256"] != files[name]["sha256"]), None)
    return None if changed is None else f"{changed} is not what was written: its digest is not that in {where}"
