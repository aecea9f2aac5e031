"""The card of an export: that of its run or of its folder, with what this folder holds and the licence of the base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.runs.models import hub_answers

NOT_STATED = "not stated"
_MOST = 1 << 20  # bytes of a card or a licence that are read
_LICENCES = (
    ("apache-2.0", re.compile(r"Apache License\s+Version 2\.0")),
    ("mit", re.compile(r"\bMIT License\b")),
)
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
_HEADER = re.compile(r"\A---[ \t]*\n(.*?\n)---[ \t]*\n", re.DOTALL)
_FILES = re.compile(r"\n## Files\n.*?(?=\n## |\Z)", re.DOTALL)
_TITLE = re.compile(r"^# .*\n", re.MULTILINE)
_MERGED = "The adapter that this card speaks of is merged into its model: the weights here are whole."


def licence_of(base: str | None, revision: str | None) -> str:
    """The licence of a model by its card, or by its file LICENSE; ``not stated`` where neither says it.

    It is an identifier of the Hub's list, such as apache-2.0. A model on the Hub is asked for its card alone.
    """
    card = "" if base is None else _card_of(base, revision)
    header = _HEADER.match(card)
    found = re.search(r"^license:\s*(?:-\s*)?['\"]?([\w.+-]+)", header[1], re.MULTILINE) if header else None
    if found is not None:
        named = re.search(r"^license_name:\s*['\"]?([\w.+-]+)", header[1], re.MULTILINE) if header else None
        return named[1] if found[1] == "other" and named is not None else found[1]
    if base is None or (file := licence_file(Path(base))) is None:
        return NOT_STATED
    text = read_text(file)[:2000]
    return next((name for name, words in _LICENCES if words.search(text)), f"as its file {file.name} says")


def licence_file(folder: Path) -> Path | None:
    """The file with a local model's licence."""
    return next((folder / name for name in _LICENCE_FILES if (folder / name).is_file()), None)


def read_text(file: Path) -> str:
    """The start of a text file; what is no text is replaced."""
    with open(file, "rb") as content:
        return content.read(_MOST).decode(errors="replace")


def _card_of(base: str, revision: str | None) -> str:
    if Path(base).is_dir():
        file = Path(base) / "README.md"
        return read_text(file) if file.is_file() else ""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = try_to_load_from_cache(base, "README.md", revision=revision)
        if not isinstance(found, str):
            if not hub_answers():
                return ""
            found = hf_hub_download(base, "README.md", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):  # the last one of a folder that is gone
        return ""
    return read_text(Path(found))


def bare_card(name: str) -> str:
    """The card of a model that brought none."""
    return (
        f"---\ntags:\n- align\n---\n\n# {name}\n\nExported with align from a folder without a model card. How it was "
        "trained is not stated here, and nothing about it was measured.\n"
    )


def exported_card(text: str, about: Mapping[str, Any]) -> str:
    """A card with the header and the section ``Files`` of an export.

    Args:
        text: the card of the run or of the folder.
        about: ``export.json``, see ``align.export.folder``.
    """
    merged, adapter = about["kind"] == "merged", about["kind"] == "adapter"
    keys = {"library_name": "peft" if adapter else "transformers", "base_model": about["base_model"]}
    if about["licence"] != NOT_STATED and not about["licence"].startswith("as "):
        keys["license"] = about["licence"]
    header = _HEADER.match(text)
    lines = _without(header[1] if header else "", ("library_name", "base_model", "license", "license_name"))
    lines += [f"{key}: {value}" for key, value in keys.items() if value]
    body = _FILES.sub("", text[header.end() :] if header else text).rstrip()
    if merged and _MERGED not in body:
        title = _TITLE.search(body)
        at = title.end() if title else 0
        body = f"{body[:at]}\n{_MERGED}\n{body[at:]}"
    return "\n".join(["---", *lines, "---", "", body.strip(), "", *_files(about)]) + "\n"


def _without(header: str, keys: tuple[str, ...]) -> list[str]:
    """The lines of a YAML header without some of its keys and what is indented or listed below them."""
    out, left = [], False
    for line in header.splitlines():
        if re.match(r"[\w-]+:", line):
            left = line.split(":")[0] in keys
        if not left:
            out.append(line)
    return out


def _files(about: Mapping[str, Any]) -> list[str]:
    kind = {"adapter": "An adapter", "merged": "All weights, the adapter merged into them", "model": "All weights"}
    said = [f"{kind[about['kind']]}, {about['dtype']}. Licence of the base model: {about['licence']}."]
    said += [f"{line[0].upper()}{line[1:]}." for line in about["notes"]]
    weights = {name: one for name, one in about["files"].items() if name.endswith(".safetensors")}
    rows = [f"| {name} | {one['bytes']:,} | `{one['sha256']}` |" for name, one in sorted(weights.items())]
    return ["## Files", "", *said, "", "| file | bytes | sha256 |", "|---|---|---|", *rows]
