"""Long work in parts: tables of samples by stage and number, so that an interrupted call or run can go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from align.errors import UserError
from align.export.listing import card_of
from align.runs.directory import differences
from align.runs.files import write_atomically
from align.sampling.files import Rows, read_tables, write_table

Stage = Literal["samples", "judged"]
STAGES: tuple[Stage, ...] = ("samples", "judged")


class PartFiles:
    """``FOLDER/STAGE/part-00000.parquet`` and so on, each with notes in a ``.json`` beside it.

    A part is there whole or not at all. Rounds and ``align sample`` keep their samples so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def table(self, stage: Stage, number: int) -> Path:
        """The file of a part's lines."""
        return self.folder / stage / f"part-{number:05d}.parquet"

    def missing(self, stage: Stage, numbers: Iterable[int]) -> list[int]:
        """Which of these parts are still to be made."""
        return [number for number in numbers if not self.table(stage, number).is_file()]

    def write(self, stage: Stage, number: int, rows: Sequence[Mapping[str, Any]], notes: Mapping[str, Any]) -> None:
        """Keep one part, with what else is to be known of it: plain values."""
        # the table last: it is what says that the part is there
        if notes:
            write_atomically(self.table(stage, number).with_suffix(".json"), json.dumps(dict(notes)) + "\n")
        write_table(self.table(stage, number), rows)

    def rows(self, stage: Stage, *numbers: int) -> Rows:
        """Lines of parts, in the order given."""
        return read_tables(self.table(stage, number) for number in numbers)

    def notes(self, stage: Stage, number: int) -> dict[str, Any]:
        """What was kept beside a part; nothing where nothing was."""
        file = self.table(stage, number).with_suffix(".json")
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class Parts(PartFiles):
    """The folder ``OUT.parts`` beside an output that is not finished, with settings in ``manifest.json``.

    Nothing is written before ``begin``.

    Raises:
        UserError: where ``out`` is there already, or cannot be written, or there is nothing to go on with, or something
            that would be lost.
    """

    def __init__(self, out: Path, *, resume: bool) -> None:
        super().__init__(manifest(out).parent)
        self.out = out
        self._manifest = manifest(out)
        if not out.parent.is_dir():
            raise UserError(f"--out {out}: there is no folder {out.parent}.")
        if not os.access(out.parent, os.W_OK) or out.is_dir():
            raise UserError(f"--out {out}: no file can be written there; name another.")
        if out.exists():
            end = "so there is nothing to resume." if resume else "so it would be lost: name another --out."
            raise UserError(f"--out {out} is there already, {end}")
        if not resume and card_of(out).exists():
            raise UserError(f"--out {out}: its card {card_of(out)} is there already and would be lost: name another.")
        if resume and not self._manifest.is_file():
            raise UserError(f"{self.folder} holds no samples to go on with: leave out --resume.")
        if not resume and self._manifest.is_file():
            raise UserError(
                f"{self.folder} holds the samples of a call that was interrupted: go on with it by --resume, name "
                "another --out, or remove the folder."
            )

    def settings(self) -> dict[str, Any]:
        """What the parts that are there were made with; nothing where there are none. Raises ``UserError``."""
        if not self._manifest.is_file():
            return {}
        try:
            return json.loads(self._manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self._manifest} cannot be read ({error}): remove {self.folder}.") from error

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises ``UserError`` where a part that is there was made with other settings."""
        before = self.settings()
        changed = list(differences(before, _plain(settings))) if before else []
        if changed:
            raise UserError(
                f"{self.folder} was started otherwise ({'; '.join(changed)}): call with the same settings to go on, or "
                "name another --out."
            )

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, on one process."""
        if not self._manifest.is_file():
            write_atomically(self._manifest, json.dumps(_plain(settings), indent=1, ensure_ascii=False) + "\n")

    def remove(self) -> None:
        """Take everything away, once the output is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def manifest(out: Path) -> Path:
    """The settings of a call that is not finished; once they are there, it can be gone on with."""
    return out.with_name(f"{out.name}.parts") / "manifest.json"


def _plain(settings: Mapping[str, Any]) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(settings))
