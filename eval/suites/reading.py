"""Suite files: those that come with the package, by name, and a user's own, by path. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from align.data.rows.files import SUFFIXES
from align.errors import UserError
from align.eval.suites.sections import KINDS, Settings
from align.recipe.messages import Problem, did_you_mean, sentence, shown, unknown_choice
from align.recipe.sampling import Endpoint, Judge
from align.recipe.sections import Section
from align.recipe.yaml import Document, parse_file, refusal

_FOLDER = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_TAKEN = re.compile(r"retain|durability|TOFU_EVAL|MUSE_EVAL|step-\d+|stability")  # other files of RUN/eval
_BELOW: Mapping[tuple[str, ...], type[Section]] = {
    ("judge",): Judge,
    ("judge", "endpoint"): Endpoint,
}  # sections within a suite


@dataclass(frozen=True)
class Suite:
    """A suite file. ``name`` is its file's, ``base`` the folder that relative paths in it start from."""

    name: str
    settings: Settings
    base: Path

    def place(self, name: str) -> str:
        """A file or folder beside the suite file, else the name as it stands: a Hub id, or from where one is."""
        beside = self.base / name
        return str(beside) if beside.exists() else name

    def written(self) -> dict[str, Any]:
        """All settings as plain values; ``suite`` is the name."""
        return {"suite": self.name, **self.settings.model_dump(mode="json")}


def packaged_suites() -> dict[str, Path]:
    """Name to file of every suite that comes with the package."""
    return {file.stem: file for file in sorted(_FOLDER.glob("*.yaml"))}


def summary(file: Path) -> str:
    """The first comment line of a suite file."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").split("\n"))
    return next(lines, "#").removeprefix("#").strip()


def load_suite(name: str) -> Suite:
    """A packaged suite by its name, or a file.

    Raises:
        UserError: where there is none, or with every mistake in it, each with its line.
    """
    known = packaged_suites()
    file = known.get(name) or Path(name)
    if not file.is_file():
        meant = did_you_mean(name, known)
        hint = f" Did you mean {meant!r}?" if meant else f" There are: {', '.join(known)}; or name a file."
        raise UserError(f"--suite {name}: there is no such suite.{hint}")
    if not _NAME.fullmatch(file.stem) or _TAKEN.fullmatch(file.stem):
        raise UserError(
            f"--suite {name}: its result would be eval/{file.stem}.json, a name that is taken or impossible. Call the "
            "file something else, of letters, digits, '.', '_', '+' and '-'."
        )
    document, base = parse_file(file, name), file.resolve().parent
    settings = _validated(document)
    if absent := _absent(settings, base):
        raise refusal(document, absent)
    return Suite(file.stem, settings, base)


def _validated(document: Document) -> Settings:
    raw = document.value
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"is {shown(raw)}"
        raise UserError(f"{document.name}  the suite {what}; expected keys, the first of them kind: {_kinds()}.")
    problems = list(document.problems)
    kind = raw.get("kind")
    if "kind" not in raw:
        raise refusal(document, [*problems, Problem(("kind",), f"missing; it is one of {_kinds()}.")])
    if not isinstance(kind, str) or kind not in KINDS:
        raise refusal(document, [*problems, Problem(("kind",), unknown_choice(kind, KINDS))])
    section = KINDS[kind]
    try:
        found = section.model_validate(raw)
    except ValidationError as error:
        for entry in error.errors(include_url=False):
            path = tuple(entry["loc"])
            above = tuple(part for part in path[:-1] if isinstance(part, str))
            keys = list(_BELOW.get(above, section).model_fields)
            problems.append(Problem(path, sentence(entry, keys)))
    if problems:
        raise refusal(document, problems)
    return found


def _absent(settings: Settings, base: Path) -> list[Problem]:
    """Files and folders that are nowhere. A name that may be a Hub id is left to the Hub."""
    return [
        Problem((key,), f"{name}: no such file or folder, neither beside the suite file nor where you are.")
        for key, name in settings
        if isinstance(name, str) and (name.startswith((".", "/")) or name.removesuffix(".gz").endswith(SUFFIXES))
        if not (base / name).exists() and not Path(name).exists()
    ]


def _kinds() -> str:
    return ", ".join(KINDS)
