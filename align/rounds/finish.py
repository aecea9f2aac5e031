"""The end of a run in rounds: the last round's model in the run's own folder, its card and its verdict."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.export.folder import complete
from align.export.source import find
from align.recipe import Recipe
from align.report.rounds import table
from align.rounds.facts import cost
from align.rounds.policy import TRAIN, round_folder
from align.rounds.report import card
from align.runs.directory import METRICS, VERDICT, RunDirectory
from align.runs.processes import World
from align.runs.record import load_run
from align.runs.report import HTML
from align.runs.result import MODEL, RunResult
from align.training.facts import add
from align.training.finish import report
from align.versions import TESTED, installed


def finish(
    recipe: Recipe,
    directory: RunDirectory,
    world: World,
    records: Sequence[Mapping[str, Any]],
    data: Sequence[str],
    seconds: float,
    say: Callable[[str], Any],
) -> RunResult:
    """Write what a finished run leaves, on the first process, and say what came of the rounds.

    Args:
        records: one for each round; see ``align.rounds.report.record``.
        data: what the card calls the prompts.
    """
    assert recipe.rounds is not None
    run = directory.path
    files = {**({"report": HTML} if recipe.watch.report else {}), "model": MODEL, "metrics": METRICS}
    verdict = {
        "run": str(run),
        "seconds": seconds,
        "rounds": list(records),
        "paths": {name: str(run / file) for name, file in files.items()},
    }
    last = round_folder(run, recipe.rounds.count) / TRAIN / MODEL

    def work() -> None:
        if world.rank == 0:
            add(directory, {"cost": cost(load_run(run), world, seconds)})
            found = replace(load_run(run), verdict=verdict)
            text = card(recipe, data, found, {name: installed(name) for name in TESTED})
            _copy(last, run / MODEL)
            directory.write("README.md", text)
            complete(run / MODEL, find(run), card=text)
            directory.write_json(VERDICT, verdict)
            written.append(report(recipe, directory, say))

    written: list[bool] = []
    world.together(work)
    ends = [f"report  {run / HTML}"] if written == [True] else []
    for line in ["", *table(records), *ends, f"model   {run / MODEL}"]:
        say(line)
    return RunResult(str(run), sum(r["steps"] for r in records), seconds, {}, verdict, 0, 0)


def remove_checkpoints(trained: Path, directory: RunDirectory) -> str:
    """Remove the checkpoints of a round that is finished, on the writing process; what was done, or nothing to say."""
    found = sorted(path for path in trained.glob("checkpoint-*") if path.is_dir() and not path.is_symlink())
    if not found or not directory.writer:
        return ""
    size = sum(file.stat().st_size for path in found for file in path.rglob("*") if file.is_file())
    for path in found:
        shutil.rmtree(path)
    many = f"{len(found)} checkpoints" if len(found) > 1 else "1 checkpoint"
    return (
        f"{many} removed ({size / 1e6:,.1f} MB), the round being finished; its model stays "
        "(rounds.keep_checkpoints: true keeps them)"
    )


def _copy(source: Path, target: Path) -> None:
    """Copy a folder so that ``target`` is there whole or not at all."""
    beside = target.with_name(f".{target.name}.part")
    for folder in (beside, target):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, beside)
    os.replace(beside, target)
