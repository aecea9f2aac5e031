"""Long work over rows in parts that are kept on disk, so that a call that was killed repeats no row when made again.

A part is a file under a digest of its rows and of all else that its results depend on: other rows, another model or
another judge make another file. Parts are dealt out to the processes of a launcher, and all of them get every result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.outside.files import json_file
from align.outside.limits import LOG
from align.runs.files import write_atomically
from align.runs.processes import World
from align.runs.terminal import Work


def _any(_: Any) -> bool:
    return True


@dataclass(frozen=True)
class Kept:
    """Where parts are kept, and who makes them.

    Attributes:
        folder: for the files of parts; nothing else lies in it.
        size: rows of a part. What a kill can cost is one part on each process.
    """

    folder: Path
    world: World
    say: Callable[[str], Any]
    size: int = 64

    def __call__(
        self,
        rows: Sequence[Any],
        about: Any,
        work: Callable[[Sequence[int]], list[Any]],
        *,
        what: str,
        done: str,
        sound: Callable[[Any], bool] = _any,
    ) -> list[Any]:
        """A result for each row, made where it is not there yet. Every process calls it and has them all.

        Args:
            rows: plain JSON, all that the result of a row depends on, beside ``about``: JSON, too.
            work: from the numbers of some rows to their results, plain JSON of one process.
            what: what happens to the rows, such as ``answers judged``, for a line about progress.
            done: the same in a word, for a line about parts that are there.
            sound: whether a result that was read can be one; a part with another one is made again.

        Raises:
            UserError: as ``work`` does, and where a part cannot be read again; the parts that were done by then are
                kept.
        """
        parts = [range(len(rows))[start : start + self.size] for start in range(0, len(rows), self.size)]
        files = [self._file(about, [rows[i] for i in part]) for part in parts]
        there = [_read(file, len(part), sound) is not None for file, part in zip(files, parts, strict=True)]
        self.world.together(lambda: None)  # all have looked before one writes
        mine = [number for number in range(self.world.rank, len(parts), self.world.size) if not there[number]]
        if any(there):
            self.say(f"{done} before: {sum(there):,} of {len(parts):,} parts")

        def make() -> None:
            with Work(what, sum(len(parts[number]) for number in mine)) as shown:
                for number in mine:
                    write_atomically(files[number], json.dumps(work(parts[number])))
                    shown.add(len(parts[number]))

        self.world.together(make)
        found = [_read(file, len(part), sound) for file, part in zip(files, parts, strict=True)]
        if lost := [file for file, values in zip(files, found, strict=True) if values is None]:
            raise UserError(
                f"{done}: {lost[0]} was written, and cannot be read again, or does not hold a result that can be for "
                "every row. Every process needs the same folder; what can be read is kept."
            )
        return [value for values in found for value in values or ()]

    def _file(self, about: Any, rows: Sequence[Any]) -> Path:
        key = hashlib.sha256(json.dumps([about, rows]).encode()).hexdigest()
        return self.folder / f"{key[:24]}.json"


def _read(file: Path, count: int, sound: Callable[[Any], bool]) -> list[Any] | None:
    """The results of a part; None where there are none, or none that can be read: then it is made again."""
    try:
        found = json_file(file, LOG)
    except (OSError, ValueError):
        return None
    whole = isinstance(found, list) and len(found) == count
    return found if whole and all(map(sound, found)) else None
