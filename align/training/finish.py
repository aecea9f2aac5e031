"""The end of a run: check, save and judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from align.data.rows.sources import source_name
from align.errors import told
from align.export.folder import complete
from align.export.names import CARD
from align.export.source import find
from align.objectives.base import sources_of
from align.recipe import Recipe
from align.report.calibration import draw_calibration
from align.report.preference import preference_verdict
from align.report.reward import reward_verdict
from align.report.survivors import survivors_verdict
from align.report.unlearning import unlearning_verdict
from align.report.verdict import Verdict
from align.runs.directory import METRICS, VERDICT, RunDirectory
from align.runs.record import load_run
from align.runs.report import HTML, write_report
from align.runs.result import MODEL, RunResult
from align.training.facts import add

CALIBRATION = "calibration.svg"


def finish(
    recipe: Recipe,
    trainer: Any,
    directory: RunDirectory,
    stopped: str,
    cost: Mapping[str, Any],
    say: Callable[[str], Any],
) -> RunResult:
    """Check, save, judge and report. ``stopped`` is why ``watch.stop_when`` ended the run, ``cost`` what it took."""
    trainer.check_finite(weights=True)
    evaluation: dict[str, float] = {}
    if trainer.eval_dataset is not None:
        evaluation = trainer.evaluate()
    trainer.save_model(str(directory.path / MODEL))
    store = trainer.reference.store if trainer.reference else None
    judged = _judge(recipe, trainer, directory, evaluation, stopped, cost["seconds"])
    add(directory, {"cost": cost})
    verdict = {**judged.to_json(), "steps": trainer.state.global_step}
    named = [*recipe.data.rows, *(recipe.data.retain or [])]
    data = [Path(source_name(source)).name if source.path else source_name(source) for source in named]
    if directory.writer:
        record = replace(load_run(directory.path), verdict=verdict)
        trainer.create_model_card(recipe.name, ", ".join(data), verdict=judged.body(), record=record)
        complete(directory.path / MODEL, find(directory.path), card=(directory.path / CARD).read_text())
    directory.write_json(VERDICT, verdict)
    if not report(recipe, directory, say):
        judged = replace(judged, paths={name: path for name, path in judged.paths.items() if name != "report"})
    for line in ["", *judged.lines()]:
        say(line)
    return RunResult(
        str(directory.path),
        trainer.state.global_step,
        cost["seconds"],
        evaluation,
        judged.to_json(),
        trainer.reference.rows_computed if trainer.reference else 0,
        store.rows_read if store else 0,
    )


def report(recipe: Recipe, directory: RunDirectory, say: Callable[[str], Any]) -> bool:
    """Write the report of a run on the writing process, unless the recipe wants none; whether there is one.

    What goes wrong with it is said, and costs the run nothing.
    """
    if not recipe.watch.report or not directory.writer:
        return False
    try:
        write_report([load_run(directory.path)], directory.path)
    except Exception as error:
        say(f"report: it could not be written ({told(error)}). Nothing else is lost; try align report {directory.path}")
        return False
    return True


def _judge(
    recipe: Recipe,
    trainer: Any,
    directory: RunDirectory,
    evaluation: dict[str, float],
    stopped: str,
    seconds: float,
) -> Verdict:
    """What the run's records say."""
    records = directory.metrics() if directory.writer else []
    files = {**({"report": HTML} if recipe.watch.report else {}), "model": MODEL, "metrics": METRICS}
    paths = {name: str(directory.path / file) for name, file in files.items()}
    if trainer.objective.scores_answers:
        held_out = _scored(trainer, evaluation, records)
        if held_out and held_out["n"] and directory.writer:
            picture = draw_calibration(directory.path / CALIBRATION, held_out["calibration"], title=recipe.name)
            paths["calibration"] = str(picture)
        rows = trainer.train_dataset
        return reward_verdict(
            records,
            run=str(directory.path),
            seconds=seconds,
            stopped=stopped,
            pairs=len(rows) if hasattr(rows, "__len__") else None,
            held_out=held_out,
            paths=paths,
        )
    if recipe.data.forget:
        kept = "retain" in sources_of(trainer.objective.branches)
        return unlearning_verdict(
            records, run=str(directory.path), seconds=seconds, stopped=stopped, has_retain_term=kept, paths=paths
        )
    if "survivor" in trainer.objective.branches:
        limit = recipe.watch.similarity_limit
        return survivors_verdict(
            records, run=str(directory.path), seconds=seconds, stopped=stopped, similarity_limit=limit, paths=paths
        )
    return preference_verdict(
        records,
        run=str(directory.path),
        seconds=seconds,
        stopped=stopped,
        objective=recipe.objective[0].name,
        compares_pairs=trainer.objective.compares_pairs,
        pairs="held-out" if trainer.eval_dataset is not None else "training",
        held_out=_held_out(trainer, evaluation, records),
        chosen_drop_nats=recipe.watch.chosen_drop_nats,
        paths=paths,
    )


def _scored(trainer: Any, evaluation: dict[str, float], records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The evaluation of a reward model on all held-out pairs as ``reward_verdict`` takes it; None where none was."""
    if not trainer.calibration:
        return {"n": 0, "ties": trainer.ties} if trainer.ties else None
    rows, key = trainer.eval_dataset, "eval_rewards/accuracies"
    start = [record[key] for record in records if record.get("step") == 0 and key in record]
    return {
        "end": evaluation[key],
        "start": start[0] if start else None,
        "n": len(rows) - trainer.ties,
        "ties": trainer.ties,
        "longer": longer_share(rows),
        "calibration": trainer.calibration,
        "calibration_error": evaluation["eval_calibration_error"],
    }


def longer_share(rows: Any) -> float:
    """Share of prepared pairs whose preferred answer has more tokens, those of equal length as half.

    The preferred answer is the chosen one, or with a ``preference`` below one half the rejected one; ties do not count.
    """
    lengths = [np.fromiter(map(len, rows[f"{side}_ids"]), dtype=int) for side in ("chosen", "rejected")]
    side = np.ones(len(rows))
    if "preference" in rows.column_names:
        side = np.sign(np.array([1.0 if p is None else p for p in rows["preference"][:]]) - 0.5)
    return float((np.sign(lengths[0] - lengths[1]) * side / 2 + 0.5)[side != 0].mean())


def _held_out(
    trainer: Any, evaluation: dict[str, float], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The evaluation on all held-out pairs as ``preference_verdict`` takes it, or None where there was none."""
    rows, key = trainer.eval_dataset, "eval_rewards/accuracies"
    if key not in evaluation or not hasattr(rows, "__len__"):
        return None
    start = [record[key] for record in records if record.get("step") == 0 and key in record]
    return {
        "end": evaluation[key],
        "n": len(rows),
        "start": start[0] if start else 0.5,
        "own": evaluation.get("eval_rewards/own_accuracies"),
        "longer": longer_share(rows),
    }
