"""A run's directory, read into a ``RunRecord``; damage beside the lock and the verdict is left out and said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from align.errors import UserError
from align.objectives.base import WeightedSum
from align.outside.files import only_files
from align.recipe.messages import did_you_mean
from align.recipe.objective import parse_objective
from align.report.record import Kind, RunRecord, kind_of
from align.runs.damage import counts, damaged, json_object, read_lock
from align.runs.directory import LOCK, METRICS, PROBE, VERDICT

FACTS, ANSWERS, EVALUATIONS = "facts.json", "answers.jsonl", "eval"


class Lines:
    """The JSON objects of a file that may grow, a line each, with a number under ``place``. A line is read once."""

    def __init__(self, file: Path, place: str = "step") -> None:
        self.file, self.place = file, place
        self._records: list[dict[str, Any]] = []
        self._broken, self._read, self._cut = 0, 0, False

    def read(self) -> list[dict[str, Any]]:
        """All of them, those among them that came since the last call."""
        if not self.file.is_file():
            return []
        # as bytes, since a text of a model may hold characters that str.splitlines takes for the end of a line
        with open(self.file, "rb") as lines:
            lines.seek(self._read)
            for line in lines:
                value = json_object(line)
                self._cut = value is None and not line.endswith(b"\n")
                if self._cut:  # it is being written, or a kill ended it
                    break
                self._read += len(line)
                if value is not None and counts(value.get(self.place)):
                    self._records.append(value)
                else:
                    self._broken += bool(line.strip())
        return list(self._records)

    def notes(self) -> list[str]:
        """A sentence on lines that were left out."""
        if not self._broken:
            return [f"{self.file}: 1 line is cut off at the end and was left out."] if self._cut else []
        count = self._broken + self._cut
        what = "1 line is no JSON object or has" if count == 1 else f"{count:,} lines are no JSON object or have"
        return [f"{self.file}: {what} no {self.place} and {'was' if count == 1 else 'were'} left out."]


def load_run(path: str | os.PathLike[str], metrics: Lines | None = None) -> RunRecord:
    """What the directory ``path`` holds of a run; ``metrics`` has read some of its ``metrics.jsonl`` already.

    Raises:
        UserError: where it is no run, or where its lock file or its verdict cannot be read.
    """
    folder = Path(path)
    require_run(folder)
    only_files(folder, own=True)
    lock = read_lock(folder / LOCK)
    kind = _kind(lock)
    metrics = metrics or Lines(folder / METRICS, "round" if kind == "rounds" else "step")
    answers, notes = Lines(folder / ANSWERS), list[str]()
    files = sorted((folder / EVALUATIONS).glob("*.json"))
    return RunRecord(
        folder,
        kind,
        lock,
        lock["recipe"],
        metrics.read(),
        _verdict(folder),
        _facts(folder / FACTS, notes),
        answers.read(),
        _json(folder / PROBE, notes),
        {file.stem: found for file in files if (found := _json(file, notes)) is not None},
        [load_run(lock.parent) for lock in sorted(folder.glob(f"rounds/*/train/{LOCK}"))],
        [*metrics.notes(), *answers.notes(), *notes],
    )


def require_run(path: Path) -> None:
    """Refuse a folder in which no run has started. Raises UserError."""
    if path.is_file():
        raise UserError(f"{path} is a file; name a run's directory.")
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        meant = did_you_mean(path.name, beside)
        hint = f" Did you mean {meant!r}?" if meant else ""
        raise UserError(f"{path}: no such folder.{hint} Name a run's directory.")
    if (path / LOCK).is_file():
        return
    if not any(path.iterdir()):
        raise UserError(f"{path} is empty: no run has started there.")
    runs = sorted(p.parent.name for p in path.glob(f"*/{LOCK}"))
    inside = f" These in it are: {', '.join(runs[:10])}." if runs else ""
    above = next((str(p) for p in path.resolve().parents if (p / LOCK).is_file()), None)
    belongs = f" It belongs to {above}: name that." if above and not runs else ""
    raise UserError(f"{path} is no run: it holds no {LOCK}.{inside}{belongs}")


def _verdict(folder: Path) -> dict[str, Any] | None:
    notes: list[str] = []
    verdict = _json(folder / VERDICT, notes)
    if notes:
        raise damaged(folder / VERDICT, "it holds no JSON object")
    findings = (verdict or {}).get("findings", {})
    if not isinstance(findings, dict) or not all(isinstance(one, dict) for one in findings.values()):
        raise damaged(folder / VERDICT, "its findings are no JSON objects")
    return verdict


def _facts(file: Path, notes: list[str]) -> dict[str, Any]:
    """What is of the right kind in ``facts.json``; a sentence goes to ``notes`` for what is not."""
    found = _json(file, notes) or {}
    wrong = [key for key in ("data", "cost", "environment") if not isinstance(found.get(key, {}), dict)]
    notes += [f"{file}: {key} is no JSON object and was left out." for key in wrong]
    return {key: value for key, value in found.items() if key not in wrong}


def _kind(lock: Mapping[str, Any]) -> Kind:
    """As the lock says; one of an earlier version does not say it, and its objective does."""
    if lock.get("kind") in get_args(Kind):
        kind: Kind = lock["kind"]
        return kind
    recipe = lock["recipe"]
    data = recipe.get("data")
    parts, _ = parse_objective(recipe.get("objective"))
    objective = WeightedSum(tuple((part.value, part.weight) for part in parts))
    forgets = isinstance(data, dict) and bool(data.get("forget"))
    return kind_of(objective, forgets=forgets, in_rounds=bool(recipe.get("rounds")))


def _json(file: Path, notes: list[str]) -> dict[str, Any] | None:
    """The mapping in a file, or None; a sentence goes to ``notes`` where there is a file and no mapping in it."""
    if not file.is_file():
        return None
    if (value := json_object(file.read_bytes())) is not None:
        return value
    notes.append(f"{file} is damaged and was left out: it holds no JSON object.")
    return None
