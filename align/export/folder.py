"""An export: a folder that plain transformers or peft load, with a card, and the digests of its files.

The ``model/`` that a run leaves is one; ``export_run`` makes others. ``complete`` is what makes a folder one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from align.errors import UserError, loading, told
from align.export.card import bare_card, exported_card, licence_file, licence_of, read_text
from align.export.names import ABOUT, CARD, belongs
from align.export.source import Source
from align.runs.checkpoints import digests
from align.runs.damage import json_object
from align.runs.files import sync_folder, write_atomically

Kind = Literal["adapter", "merged", "model"]

QUANTISED = "the adapter was trained on weights in {}; on plain ones it computes otherwise, and a merged model does not"
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: where it is.
        kind: an adapter, a model with its adapter merged, or a whole model.
        dtype: types of its weights.
        base_model: Hub id of the model that it was made from; None for a folder of this machine.
        licence: of that model.
        files: every file by name, with ``bytes`` and ``sha256``; ``export.json``, which holds them, is not among them.
        notes: what was measured when it was made, a sentence each.
    """

    folder: Path
    kind: Kind
    dtype: str
    base_model: str | None
    licence: str
    files: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(one["bytes"] for one in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**vars(self), "folder": str(self.folder), "bytes": self.bytes}


def complete(
    folder: Path, source: Source, *, merged: bool = False, card: str | None = None, notes: Sequence[str] = ()
) -> Export:
    """Make an export of a folder that holds weights and tokenizer: licence, card, digests.

    Args:
        source: what the folder is, or was made of.
        merged: whether the adapter of ``source`` is in its weights.
        card: the card of the run; None for the one that is there.
        notes: what was measured, for the card; half sentences in lower case.

    Raises:
        UserError: where the folder has no weights.
    """
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights (no *.safetensors), so it cannot be exported.")
    kind: Kind = "merged" if merged else "adapter" if source.adapter else "model"
    if kind == "adapter" and source.load_in is not None:
        notes = [*notes, QUANTISED.format(source.load_in)]
    local = source.base is not None and Path(source.base).is_dir()
    licence = licence_of(source.base, source.revision)
    stated = licence_file(Path(str(source.base))) if local and kind != "adapter" else None
    if stated is not None:
        copy_beside(stated.parent, folder, (stated.name,))
    weights = digests(folder, sorted(path.name for path in folder.glob("*.safetensors")), sync=True)
    about: dict[str, Any] = {
        "kind": kind,
        "of": source.of,
        "dtype": dtypes(folder),
        "base_model": None if local else source.base,
        "licence": licence,
        "notes": list(notes),
        "files": weights,
    }
    there = folder / CARD
    text = card or (read_text(there) if there.is_file() else bare_card(source.folder.resolve().name))
    write_atomically(there, exported_card(text, about))
    rights = there.stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(rights)  # safetensors leaves weights to their owner alone
    others = [name for name in contents(folder) if name not in weights]
    about["files"] = {**weights, **digests(folder, others, sync=True)}
    write_atomically(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    sync_folder(folder)
    shown = {key: about[key] for key in ("kind", "dtype", "base_model", "licence", "files", "notes")}
    return Export(folder, **shown)


def contents(folder: Path) -> list[str]:
    """The names of the files of an export, relative to it; ``export.json`` is not among them."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in found if belongs(name))


def about_of(folder: Path) -> Mapping[str, Any] | None:
    """``export.json`` of a finished export, or None where the folder is none."""
    file = folder / ABOUT
    return json_object(file.read_bytes()) if file.is_file() else None


def dtypes(folder: Path) -> str:
    """The types of the weights in a folder, by the headers of its files, such as ``float32``."""
    found = set()
    for file in sorted(folder.glob("*.safetensors")):
        with loading(partial(_unread, file)), safe_open(file, "pt") as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118  # no mapping
    return ", ".join(sorted(_TYPES.get(kind, kind) for kind in found))


def _unread(file: Path, error: Exception) -> str:
    return f"{file} cannot be read as safetensors ({told(error)}): it is damaged, or not whole."


def copy_beside(source: Path, target: Path, kinds: Sequence[str]) -> None:
    """Copy the files of ``kinds``. Raises UserError for links that lead elsewhere."""
    top = source.resolve()
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source)
        if not file.is_file() or not belongs(name, kinds):
            continue
        place = file.resolve()
        # the Hub's cache keeps files as links to ../../blobs
        if not place.is_relative_to(top) and place.parent != top.parent.parent / "blobs":
            raise UserError(f"{file} is a link to a file outside of its folder, {place}: put a copy in its place.")
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(place, target / name)
