"""``align eval relearn``: what to attack, and with what, from a finished run's recipe and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.eval import tofu
from align.eval.durability import Durability
from align.eval.leak import Leaking
from align.eval.log import TofuLog
from align.eval.log_read import read_log
from align.eval.relearn import Say, relearn
from align.eval.relearning import LEARNING_RATE, ROWS, STEPS, Relearning
from align.eval.tofu_data import Rows, TofuSets, load_sets
from align.models.subject import Subject
from align.recipe import Recipe
from align.recipe.sections import Evaluate, Source
from align.report.trajectory import trajectory
from align.runs.directory import LOCK, RunDirectory

FILE = "eval/durability.json"
_RETAIN_LOG = "eval/retain.json"  # kept by the run, of the recipe's retain model


@dataclass(frozen=True)
class FinishedRun:
    """A run directory with its recipe; ``recipe`` is None where the model is a folder or a Hub id."""

    directory: RunDirectory
    recipe: Recipe | None

    @classmethod
    def at(cls, name: str, *, allow_code: bool = False) -> FinishedRun:
        """The run called ``name``. Raises UserError where its lock file holds no recipe of this version.

        ``allow_code`` says whether an objective of the user's that the recipe names may be imported.
        """
        directory = RunDirectory(Path(name).expanduser())
        lock = directory.lock
        base = Path(lock["base"]) if "base" in lock else None
        if not lock.get("recipe"):
            return cls(directory, None)
        return cls(directory, Recipe.from_dict(lock["recipe"], name=LOCK, base=base, allow_code=allow_code))

    @property
    def evaluate(self) -> Evaluate | None:
        return self.recipe.evaluate if self.recipe else None

    def learning_rate(self) -> float:
        """The rate it was trained with, the recipe's or the default."""
        return LEARNING_RATE if self.recipe is None else float(self.recipe.train_values()["learning_rate"])

    def before(self) -> dict[str, float] | None:
        """The suite's reading at step 0, where the run recorded one."""
        read = trajectory(self.directory.metrics())
        return {k: v for k, v in read[0].items() if k != "step"} if read and read[0]["step"] == 0 else None


def attack_run(
    name: str,
    *,
    source: str | None = None,
    split: str | None = None,
    rows: Rows | None = None,
    limit: int | None = None,
    retain: str | None = None,
    control: bool = False,
    steps: int | None = None,
    rows_relearned: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    leaking: Leaking | None = None,
    system: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    say: Say = print,
) -> Durability:
    """Attack a finished run, or any model with a ``source``; a run keeps the result as ``eval/durability.json``, but
    not that of a trial on the first ``limit`` rows.

    What is None comes from the run's recipe (``evaluate`` and the learning rate), else from ``align.eval.relearn``.
    ``arguments`` of chat templates win over those that the models were trained with. ``retain`` is a model or a log;
    with ``control`` it must be a model.

    Raises:
        UserError: where nothing says what to measure, or a part of it cannot be had.
    """
    run = FinishedRun.at(name, allow_code=allow_code)
    as_trained = source is None and split is None and rows is None and system is None
    settings = run.evaluate
    questions: str | Source | None = source or (settings.source if settings else None)
    if questions is None:
        what = f"the recipe of {name} has no evaluate section" if run.recipe else f"{name} is no run with a recipe"
        raise UserError(f"Nothing says what to measure: {what}. Give --source and --split, or train with evaluate.")
    own_base = run.recipe.base if run.recipe is not None else None
    sets = load_sets(
        split or (settings.split if settings else "forget10"),
        questions,
        rows=rows or (settings.rows if settings else "all"),
        base=None if source else own_base,
        limit=limit,
    )
    count = len(sets.sets["forget"])
    usual = ROWS if sets.limit is None else min(ROWS, count // 2)  # a trial keeps rows to look at
    if system is None and isinstance(questions, Source):
        system = questions.system
    relearning = Relearning(
        STEPS if steps is None else steps,
        usual if rows_relearned is None else rows_relearned,
        run.learning_rate() if learning_rate is None else learning_rate,
        seed,
    )
    relearning.drawn(count)  # mistakes and costs are said before a retain model is measured
    named = retain or (_found(settings.retain, own_base) if settings and settings.retain else None)
    if control:
        _check_control(named)
    (leaking or Leaking()).announce([f.answer for f in sets.sets["forget"]], 1 + control, sets.new_tokens, say)
    own = run.directory.path / _RETAIN_LOG if retain is None and as_trained else None
    target = None if control else _target(named, own, sets, system, arguments, say)
    durability = relearn(
        name,
        sets,
        relearning=relearning,
        leaking=leaking,
        target=target,
        control=named if control else None,
        system=system,
        arguments=arguments,
        before=run.before() if as_trained and sets.limit is None else None,
        say=say,
    )
    if run.recipe is not None and sets.limit is None:
        run.directory.write_json(FILE, durability.to_json())
    return durability


def _found(name: str, base: Path | None) -> str:
    """What a recipe calls its retain model or log, from where it can be loaded."""
    if base is not None and (base / name).exists():
        return str(base / name)
    return name


def _check_control(named: str | None) -> None:
    """Refuse a control that is no model. Raises UserError."""
    if named is None or _is_log(named):
        found = f"{named} is a log" if named else "there is none"
        raise UserError(f"--control attacks the retain model, too, and {found}: name a model as --retain.")


def _is_log(name: str) -> bool:
    return Path(name).expanduser().is_file() or name.endswith((".json", ".json.gz"))


def _target(
    named: str | None,
    own: Path | None,
    sets: TofuSets,
    system: str | None,
    arguments: Mapping[str, Any] | None,
    say: Say,
) -> TofuLog | None:
    """The retain model's log: the run's own, one that is named, or one that is made here."""
    if own is not None and own.is_file():
        return replace(read_log(own), name=named or str(own))
    if named is None:
        return None
    if _is_log(named):
        return read_log(Path(named).expanduser())
    say(f"{named}: measuring the retain model")
    subject: Any = Subject.load(named, system=system, arguments=arguments, echo=say)
    return tofu.evaluate(subject, sets, mia=False)
