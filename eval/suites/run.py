"""``align eval RUN --suite NAME...``: suites one after another, each with one file of results."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.eval.finished_run import FinishedRun
from align.eval.result import Result, limited
from align.eval.suites import harness, judged, preference, unlearning
from align.eval.suites.measuring import Measured, Measuring
from align.eval.suites.reading import Suite
from align.models.weights import weights_digest
from align.outside.files import json_file
from align.outside.limits import LOG
from align.recipe.sampling import Judge
from align.runs.files import write_atomically
from align.runs.processes import World, free
from align.stats import Interval, finite
from align.versions import installed

_VERSIONS = ("align-llm", "torch", "transformers", "datasets", "scipy", "rouge-score", "lm_eval")
_MEASURES: Mapping[str, Callable[..., Measured | None]] = {
    "tofu": unlearning.tofu,
    "muse": unlearning.muse,
    "alpaca": judged.alpaca,
    "consistency": judged.consistency,
    "preference": preference.preference,
    "harness": harness.harness,
}

_REQUIRED: Mapping[str, Callable[..., None]] = {"alpaca": judged.require, "harness": harness.require}


def run_suites(
    model: str,
    suites: Sequence[Suite],
    *,
    out: Path | None = None,
    judge: Judge | None = None,
    limit: int | None = None,
    allow_code: bool = False,
    world: World,
    say: Callable[[str], Any],
) -> list[dict[str, Any]]:
    """Measure a run or model with each suite; every process calls it, and the first writes and has the results.

    A suite that was measured before with the same settings and weights is not measured again. One that was killed goes
    on from the parts that it left.

    Args:
        out: a folder for the results; a run's own ``eval`` by default.

    Raises:
        UserError: where a suite cannot be measured; results of suites before it are kept.
    """
    run = FinishedRun.at(model, allow_code=allow_code)
    folder = _folder(model, run, out)
    weights = weights_digest(model)
    each = [Measuring(suite, model, weights, run, folder, world, say, judge, limit, allow_code) for suite in suites]
    for now in each:  # before the first is measured, which may take hours
        if require := _REQUIRED.get(now.suite.settings.kind):
            require(now.suite.settings, now)
    found = []
    for now in each:
        before = world.shared(_before(now))
        if before is None:
            before = _measure(now)
        else:
            say(
                f"{now.suite.name}: measured before with these settings and weights ({before['ended']}); remove "
                f"{result_file(now)} to measure again"
            )
        found.append(before)
        free()  # the next suite loads what it needs
    return found


def result_file(now: Measuring) -> Path:
    return now.folder / f"{now.suite.name}.json"


def _folder(model: str, run: FinishedRun, out: Path | None) -> Path:
    if out is not None:
        return out
    if run.recipe is None:
        raise UserError(f"{model} is no run, which would keep its results in its folder: name one with --out FOLDER.")
    return run.directory.path / "eval"


def _before(now: Measuring) -> dict[str, Any] | None:
    """The result of an earlier call, if it is what this one would give.

    Raises ``UserError`` where a trial would take the place of a whole result.
    """
    file = result_file(now)
    try:
        found = json_file(file, LOG)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or "figures" not in found:
        return None
    if all(found.get(key) == value for key, value in _identity(now).items()):
        return found
    if now.limit is not None and "limit" not in found:
        raise UserError(
            f"{file} holds a result on all rows, and one on {now.limit:,} would take its place: leave out --limit, or "
            "name another folder with --out."
        )
    return None


def _identity(now: Measuring) -> dict[str, Any]:
    """What a result depends on, as plain JSON: settings and the files that they name, judge and weights."""
    settings = now.suite.written()
    if settings["kind"] == "alpaca" and settings["judge"] is None and now.judge is not None:
        settings["judge"] = now.judge.model_dump(mode="json")
    about = {"suite": now.suite.name, "settings": settings, "contents": now.contents()}
    return {**about, "weights": now.weights, "asked_limit": now.limit}


def _measure(now: Measuring) -> dict[str, Any]:
    """Measure, and write the result on the first process."""
    began = time.monotonic()
    now.say(f"{now.suite.name}: measuring {now.model}")
    measured = _MEASURES[now.suite.settings.kind](now.suite.settings, now)
    now.world.together(lambda: None)  # all have read the parts before they go
    if now.world.rank or measured is None:
        return {}
    written = {
        **_identity(now),
        "model": now.model,
        **_plain(measured),
        "versions": {name: version for name in _VERSIONS if (version := installed(name)) is not None},
        "seconds": round(time.monotonic() - began, 1),
        "ended": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    }
    write_atomically(result_file(now), json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(now.parts, ignore_errors=True)
    return written


def lines(found: Mapping[str, Any]) -> list[str]:
    """A result for the terminal."""
    figures = found["figures"]
    spans = {name: Interval.from_json(figure) for name, figure in figures.items()}
    return Result(
        f"{found['suite']}: {found['name']}",
        values={name: float(figure["value"]) for name, figure in figures.items() if figure["value"] is not None},
        intervals={name: span for name, span in spans.items() if span is not None},
        missing=dict(found["missing"]),
        notes=[*found["notes"], *found.get("verdict", ())],
        limit=found.get("limit"),
    ).lines()


def _plain(measured: Measured) -> dict[str, Any]:
    """Values with intervals and numbers of items, and all that a reader must know of them."""
    result = measured.result
    figures = {}
    for name, value in result.values.items():
        figures[name] = {"value": finite(value), "low": None, "high": None, "n": None}
        if (span := result.intervals.get(name)) is not None:
            figures[name] |= span.to_json()
    return {
        "name": result.name,
        "measured": dict(result.settings),
        "figures": figures,
        "main": [name for name in measured.main if name in figures],
        "missing": dict(result.missing),
        "notes": list(result.notes),
        **measured.about,
        "asked": measured.asked,
        "items": {name: result.items[name] for name in figures if name in result.items},
        **limited(result.limit),
    }
