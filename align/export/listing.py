"""What a push takes along: the files of a model or a data set, each with its size and its digests. Imports no torch.

A list says which names go; whatever else lies in the folder stays. Texts that people write or that carry settings are
read for secrets, which are refused, and for the home folder, which goes as ``~``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from align.data.rows.files import SUFFIXES, USUAL_SPLITS, file_kind, file_stem
from align.errors import UserError
from align.export.damage import damage
from align.export.names import ABOUT, BESIDE, CARD, DOCUMENTS, WEIGHTS, belongs
from align.export.private import without_home, without_secrets
from align.runs.damage import json_object
from align.runs.directory import LOCK
from align.runs.files import digest_of
from align.runs.models import ADAPTER, model_of
from align.runs.result import MODEL

Kind = Literal["model", "dataset"]

_CONTENTS = (*WEIGHTS, *BESIDE, ABOUT)
_LOADED = tuple(kind for kind in (*WEIGHTS, *BESIDE) if kind not in DOCUMENTS)
# what is read for secrets and for folders of this machine
_READ = (
    *("*.md", "*.jinja", "additional_chat_templates/*.jinja", "*config.json", ABOUT, *DOCUMENTS),
    *("added_tokens.json", "special_tokens_map.json"),
)
_SMALL = 10 << 20  # bytes; the Hub keeps larger files apart from git, and a card or a configuration is none of them
_NO_ROWS = ("dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json")  # of `datasets`
_PICTURES = (".png", ".svg")  # go where the card shows them


@dataclass(frozen=True)
class Entry:
    """One file as it goes: the file itself, or its ``content`` where that differs from the file.

    ``blob`` is the SHA-1 that git knows a small file by, of ``blob SIZE`` and the content; empty for a larger one,
    which the Hub knows by its SHA-256.
    """

    name: str
    path: Path
    size: int
    sha256: str
    blob: str
    content: bytes | None = None

    @classmethod
    def of(cls, name: str, path: Path, content: bytes, *, as_it_is: bool) -> Entry:
        """A small file with its digests; ``as_it_is`` says that the content is that of the file."""
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        kept = None if as_it_is else content
        return cls(name, path, len(content), hashlib.sha256(content).hexdigest(), blob, kept)

    def read(self) -> bytes:
        """What goes."""
        return self.path.read_bytes() if self.content is None else self.content


@dataclass(frozen=True)
class Listing:
    """What goes, what stays in the folder, and sentences about what was changed or is missing.

    ``name`` is what people call it: the run's, the folder's or the file's name.
    """

    name: str
    kind: Kind
    entries: tuple[Entry, ...]
    stays: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    @property
    def card(self) -> str:
        """The text of README.md, empty where there is none."""
        card = next((entry for entry in self.entries if entry.name == CARD), None)
        return "" if card is None else card.read().decode(errors="replace")

    @property
    def another(self) -> str:
        """What a file that mixes with these belongs to."""
        return "another model" if self.kind == "model" else "the same split"

    def mixes_with(self, name: str) -> bool:
        """Whether a file of this name in the repository would be loaded together with what goes, or in its place."""
        if self.kind == "model":
            return belongs(Path(name), _LOADED)
        if "\nconfigs:" in self.card:  # it says which files belong together
            return False
        return _part(name) is not None and _part(name) in {_part(entry.name) for entry in self.entries}


def _part(name: str) -> tuple[str, str] | None:
    """Format and split of a file with rows; one whose name has no word of a split is of ``train``, as on the Hub."""
    kind, words = file_kind(Path(name)), re.split(r"[^a-z]+", file_stem(Path(name)))
    if kind is None or Path(name).name in _NO_ROWS:
        return None
    return kind, next((word for word in words if word in USUAL_SPLITS), "train")


def listing(place: Path) -> Listing:
    """What of a run, a folder with a model, or a data set (a file, or a folder of files) would be pushed.

    Raises:
        UserError: where it is none of these, holds a secret, or links to what lies outside of it.
    """
    if place.is_file():
        return _of_file(place)
    if not place.is_dir():
        raise UserError(f"{place}: no such run, folder or file.")
    folder = model_of(place)
    if (folder / "config.json").is_file() or (folder / ADAPTER).is_file():
        return _of_model(place.resolve().name, folder)
    if any(found.is_dir() for found in (folder / MODEL, *folder.glob("checkpoint-*"))):
        raise UserError(
            f"{folder} holds a run's folders and no {LOCK}, without which nothing says what it is: name the folder in "
            "it that shall go, such as its model."
        )
    names = [name for name in _names(folder) if file_kind(Path(name))]
    if not names:
        raise UserError(
            f"{folder} holds neither a model (config.json or {ADAPTER}) nor rows ({', '.join(SUFFIXES)}): name a run, "
            "a folder that align export wrote, or a data set."
        )
    return _listed(place.resolve().name, "dataset", folder, [*names, *_fitting(folder, DOCUMENTS)])


def card_of(file: Path) -> Path:
    """The card of a data set that is one file, beside it; ``align sample`` writes it."""
    return file.with_name(f"{file.name}.md")


def _of_model(name: str, folder: Path) -> Listing:
    names = _fitting(folder, _CONTENTS)
    if (why := damage(folder)) is not None:
        raise UserError(f"{folder} is not pushed: {why}")
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{folder} holds no weights as safetensors, and others are not pushed: they are pickles, which run code "
            "where they are loaded."
        )
    if CARD in names:
        card = _entry(CARD, folder / CARD, folder.resolve())[0].read()
        names += [name for name in _names(folder) if name.endswith(_PICTURES) and f"({name})".encode() in card]
    found = _listed(name, "model", folder, names)
    return replace(found, notes=(*found.notes, *_base_here(folder / ADAPTER)))


def _base_here(config: Path) -> list[str]:
    """A sentence where an adapter names a folder of this machine as the model that it is for."""
    base = (json_object(config.read_bytes()) or {}).get("base_model_name_or_path") if config.is_file() else None
    if not isinstance(base, str) or not (Path(base).is_absolute() or Path(base).is_dir()):
        return []
    return [
        f"{ADAPTER} names its base model as {base}, a folder of this machine: others cannot load it so. Push the "
        "merged model instead (align export RUN --merge)"
    ]


def _of_file(file: Path) -> Listing:
    if file_kind(file) is None:
        raise UserError(f"{file}: its name is none of a data set: expected {', '.join(SUFFIXES)} (or .gz).")
    entry, notes = _entry(file.name, file, file.resolve().parent)
    card = card_of(file)
    if not card.is_file():
        return Listing(file.name, "dataset", (entry,), notes=(*notes, _CARDLESS))
    about, more = _entry(CARD, card, file.resolve().parent)
    return Listing(file.name, "dataset", (entry, about), notes=(*notes, *more))


_CARDLESS = f"there is no {CARD}: nothing says where this comes from"


def _listed(name: str, kind: Kind, folder: Path, names: Iterable[str]) -> Listing:
    chosen = sorted(set(names))
    root = folder.resolve()
    found = [_entry(one, folder / one, root) for one in chosen]
    notes = [note for _, said in found for note in said]
    if CARD not in chosen:
        notes.append(_CARDLESS)
    stays = tuple(sorted(set(_names(folder)) - set(chosen)))
    return Listing(name, kind, tuple(_with_digests([entry for entry, _ in found])), stays, tuple(notes))


def _names(folder: Path) -> Iterator[str]:
    """What lies in a folder: files and, with a slash, folders; of ``data`` and of templates what lies in them."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            yield path.name
        elif path.name in ("data", "additional_chat_templates"):
            yield from (f"{path.name}/{one.name}{'/' if one.is_dir() else ''}" for one in sorted(path.iterdir()))
        else:
            yield f"{path.name}/"


def _fitting(folder: Path, patterns: Sequence[str]) -> list[str]:
    return [name for name in _names(folder) if belongs(Path(name), patterns)]


def _entry(name: str, path: Path, root: Path) -> tuple[Entry, list[str]]:
    """A file, read once, and what is to be said of it. Raises UserError."""
    real, read = path.resolve(), belongs(Path(name), _READ)
    if not real.is_relative_to(root):
        raise UserError(f"{path} is a link to {real}, outside of what is pushed: put the file itself there.")
    try:
        with open(path, "rb", opener=_regular) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _SMALL and read:
                raise UserError(f"{path} has {size:,} bytes, too many to be looked through: take something out.")
            if size > _SMALL:
                return Entry(name, path, size, digest_of(file), ""), []
            text = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    if not read:
        return Entry.of(name, path, text, as_it_is=True), []
    without_secrets(path, text)
    content, notes = without_home(name, text)
    return Entry.of(name, path, content, as_it_is=content == text), notes


def _with_digests(entries: list[Entry]) -> list[Entry]:
    """The files with the digests in ``export.json`` of those that go otherwise than they lie here."""
    about = next((entry for entry in entries if entry.name == ABOUT), None)
    changed = {entry.name: {"bytes": entry.size, "sha256": entry.sha256} for entry in entries if entry.content}
    value = None if about is None else json_object(about.read())
    if about is None or value is None or not changed or not isinstance(value.get("files"), dict):
        return entries
    value["files"] |= {name: digests for name, digests in changed.items() if name in value["files"]}
    now = Entry.of(ABOUT, about.path, (json.dumps(value, indent=1) + "\n").encode(), as_it_is=False)
    return [now if entry is about else entry for entry in entries]


def _regular(path: str, flags: int) -> int:
    """Open a file that is one: a pipe would wait for ever. Raises OSError."""
    place = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(place).st_mode):
        os.close(place)
        raise OSError("it is no plain file")
    return place
