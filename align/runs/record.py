"""A run's directory, read into a ``RunRecord``; damage beside the lock and the verdict is left out and said."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from align.errors import UserError
from align.objectives.base import WeightedSum
from align.recipe.messages import did_you_mean
from align.recipe.objective import parse_objective
from align.report.record import Kind, RunRecord, kind_of
from align.runs.directory import LOCK, METRICS, VERDICT

FACTS, ANSWERS, PROBE, EVALUATIONS = "facts.json", "answers.jsonl", "probe.json", "eval"


def load_run(path: str | os.PathLike[str]) -> RunRecord:
    """What the directory ``path`` holds of a run.

    Raises:
        UserError: where it is no run, or where its lock file or its verdict cannot be read.
    """
    folder = Path(path)
    require_run(folder)
    lock = _lock(folder)
    recipe, kind = lock["recipe"], _kind(lock)
    notes: list[str] = []
    files = sorted((folder / EVALUATIONS).glob("*.json"))
    evaluations = {file.stem: found for file in files if (found := _json(file, notes)) is not None}
    return RunRecord(
        folder,
        kind,
        lock,
        recipe,
        _lines(folder / METRICS, notes, "round" if kind == "rounds" else "step"),
        _verdict(folder),
        _json(folder / FACTS, notes) or {},
        _lines(folder / ANSWERS, notes, "step"),
        _json(folder / PROBE, notes),
        evaluations,
        [load_run(lock.parent) for lock in sorted(folder.glob(f"rounds/*/train/{LOCK}"))],
        notes,
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


def _lock(folder: Path) -> dict[str, Any]:
    try:
        lock = yaml.safe_load((folder / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise _damaged(folder / LOCK, error) from error
    if not isinstance(lock, dict) or not isinstance(lock.get("recipe"), dict):
        raise _damaged(folder / LOCK, "it holds no recipe")
    return lock


def _verdict(folder: Path) -> dict[str, Any] | None:
    notes: list[str] = []
    verdict = _json(folder / VERDICT, notes)
    if notes:
        raise _damaged(folder / VERDICT, "it holds no JSON object")
    return verdict


def _damaged(file: Path, why: object) -> UserError:
    return UserError(f"{file} is damaged ({' '.join(str(why).split())[:200]}). Put it back from a copy.")


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
    if not file.exists():
        return None
    if (value := _object(file.read_bytes())) is not None:
        return value
    notes.append(f"{file} is damaged and was left out: it holds no JSON object.")
    return None


def _lines(file: Path, notes: list[str], place: str) -> list[dict[str, Any]]:
    """The JSON objects of a file, a line each, with a number under ``place``; others are counted."""
    records: list[dict[str, Any]] = []
    broken, last = 0, b"\n"
    if not file.exists():
        return records
    # as bytes, since a text of a model may hold characters that str.splitlines takes for the end of a line
    with open(file, "rb") as lines:
        for last in lines:
            value = _object(last)
            if value is not None and isinstance(value.get(place), int | float):
                records.append(value)
            else:
                broken += 1
    if broken == 1 and not last.endswith(b"\n"):
        notes.append(f"{file}: 1 line is cut off at the end and was left out.")
    elif broken:
        what = "1 line is no JSON object or has" if broken == 1 else f"{broken:,} lines are no JSON object or have"
        notes.append(f"{file}: {what} no {place} and {'was' if broken == 1 else 'were'} left out.")
    return records


def _object(text: bytes) -> dict[str, Any] | None:
    """The JSON object in ``text``, or None where it holds none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
