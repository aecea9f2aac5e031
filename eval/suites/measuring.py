"""What is measured, and what a suite hands back: a model or run with its place on disk, and values with their items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.eval.finished_run import FinishedRun
from align.eval.kept import Kept
from align.eval.kept_subject import KeptSubject
from align.eval.result import Result
from align.eval.suites.reading import Suite
from align.models.subject import Subject
from align.models.weights import weights_digest
from align.outside.files import opened
from align.recipe.sampling import Judge
from align.recipe.sections import Source
from align.runs.directory import LOCK
from align.runs.files import digest_of
from align.runs.processes import World

# settings of suites that name files, folders or models
_PLACES = ("source", "retain", "reference", "difficulty", "anchors", "pairs", "preferences", "include")
_ON_HELD_OUT = ("preference", "consistency")  # whose rows are those that a run held out, where none are named


@dataclass(frozen=True)
class Measuring:
    """One suite on one model.

    Attributes:
        model: a run, a folder of a model or a Hub id.
        weights: its digest.
        run: what its recipe says; one without a recipe where it is no run.
        folder: of all results; a suite's own files lie in a folder of its name in it.
        judge: of the command line, for suites that need one and name none.
        limit: rows of each set that are asked in a trial.
    """

    suite: Suite
    model: str
    weights: str
    run: FinishedRun
    folder: Path
    world: World
    say: Callable[[str], Any]
    judge: Judge | None = None
    limit: int | None = None
    allow_code: bool = False

    @property
    def own(self) -> Path:
        """The suite's own files, of one that leaves any beside its result."""
        return self.folder / self.suite.name

    @property
    def parts(self) -> Path:
        """What is kept until the suite is done."""
        return self.folder / f"{self.suite.name}.parts"

    @property
    def kept(self) -> Kept:
        return Kept(self.parts, self.world, self.say)

    def subject(self, name: str | None = None) -> KeptSubject:
        """The model, or another one that it is compared with, loaded on every process. Raises ``UserError``."""
        of_recipe = self.run.evaluate.source.system if self.run.evaluate is not None else None
        loaded = Subject.load(name or self.model, system=of_recipe, echo=self.say)
        return KeptSubject(loaded, self.kept, self.weights if name is None else weights_digest(name))

    def held_out(self) -> list[Source]:
        """The held-out rows of the run's recipe. Raises ``UserError`` where there are none."""
        recipe = self.run.recipe
        if recipe is None:
            raise UserError(
                f"suite {self.suite.name}: {self.model} is no run, so no rows are held out: copy the suite file and "
                "name rows in it."
            )
        if not recipe.data.held_out:
            raise UserError(
                f"suite {self.suite.name}: the recipe of {self.model} holds no rows out (data.held_out): copy the "
                "suite file and name rows in it."
            )
        return list(recipe.data.held_out)

    def contents(self) -> dict[str, str]:
        """Digests of the files, and of the folders with all below them, that the suite reads beside the model."""
        named = {key: getattr(self.suite.settings, key, None) for key in _PLACES}
        places = {key: Path(self.suite.place(name)) for key, name in named.items() if name is not None}
        recipe = self.run.recipe
        if self.suite.settings.kind in _ON_HELD_OUT and not places.keys() & {"pairs", "preferences"} and recipe:
            for number, source in enumerate(recipe.data.held_out):
                if source.path is not None:
                    places[f"held out {number}"] = (recipe.base or Path()) / source.path
        return {key: _digest_of_place(place) for key, place in places.items() if place.exists()}

    def source(self, name: str) -> Source:
        """Rows that the suite file names: beside it, below the working directory, or on the Hub."""
        place = self.suite.place(name)
        on_hub = not Path(place).exists() and name.count("/") == 1 and not name.startswith((".", "/"))
        return Source(id=name) if on_hub else Source(path=place)


@dataclass(frozen=True)
class Measured:
    """What a suite found.

    Attributes:
        result: values with intervals, what is missing and why, and items for paired comparisons.
        main: the values by which runs are compared; the others are details.
        asked: a digest of the rows where items are known by their place alone; items of other rows are no pairs.
        about: further facts of the result.
    """

    result: Result
    main: tuple[str, ...]
    asked: str | None = None
    about: dict[str, Any] = field(default_factory=dict)


def _digest_of_place(place: Path) -> str:
    """A digest of a file, or of the files below a folder, of a run's those of its model."""
    place = place / "model" if (place / LOCK).is_file() else place
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    found = []
    for file in files:
        if "__pycache__" in file.parts:  # which reading a folder's code leaves there
            continue
        with opened(file) as content:
            found.append([str(file.relative_to(place)), digest_of(content)])
    return digest_of_rows(found)


def digest_of_rows(rows: Any) -> str:
    """A digest of plain values that were asked."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, default=str).encode()).hexdigest()[:16]
