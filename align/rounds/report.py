"""What came of the rounds: read from their files, printed as a table, kept in the verdict and the card."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.recipe import Recipe
from align.report.card import CardFacts, model_card
from align.report.record import RunRecord
from align.report.rounds import table
from align.rounds.pairs import dropped, position_bias, undecided
from align.rounds.policy import TRAIN, begins_at_zero
from align.rounds.stages import Round
from align.runs.damage import reading
from align.runs.directory import METRICS, VERDICT, RunDirectory
from align.sampling.files import read_tables
from align.sampling.similarity import among

_PAIRS = 64  # pairs of chosen answers whose likeness is measured
_OVER, _LEAST = 4.0, 1e-5  # a mean margin tells something above so many times its rounding, and above this


def record(round: Round, recipe: Recipe) -> dict[str, Any]:
    """Everything that is measured in a round.

    ``score`` is the judge's mean (None for one that compares), ``similarity`` the METEOR likeness of chosen answers to
    different prompts (a reward that rises with it is a collapse), ``tokens`` the mean length of the samples,
    ``truncated`` the share of them that the limit cut off, ``position_bias`` the mean of P(first shown better) - 1/2,
    ``undecided`` the share of the judge's answers that named neither response (None where it writes none),
    ``loss`` that of the first and of the last log step, ``accuracy`` the training pairs' at the last one, or None where
    their margins are still rounding.
    """
    verdict = round.folder / TRAIN / VERDICT
    with reading(verdict):
        steps = json.loads(verdict.read_bytes())["steps"]
    lines = round.lines("judged")
    scores = [line["score"] for line in lines if line["score"] is not None]
    notes = round.notes()
    neither, answers = undecided(round)
    trained = [r for r in RunDirectory(round.folder / TRAIN).metrics() if "loss" in r]
    return {
        "round": round.number,
        "prompts": len(round.prompts),
        "samples": len(lines),
        "score": sum(scores) / len(scores) if scores else None,
        "similarity": _alike([line["text"] for line in lines if line["selected"] == "chosen"], round.number),
        "tokens": sum(len(line["ids"]) for line in lines) / len(lines),
        "truncated": sum(line["finish"] == "length" for line in lines) / len(lines),
        "dropped": dict(dropped(round)),
        "pairs": len(read_tables([round.pairs])),
        "comparisons": sum(note.get("comparisons", 0) for note in notes),
        "ties": sum(note.get("ties", 0) for note in notes),
        "position_bias": position_bias(round),
        "undecided": neither / answers if answers else None,
        "loss": [trained[0]["loss"], trained[-1]["loss"]] if trained else None,
        "accuracy": _accuracy(trained, begins_at_zero(recipe, round.number)),
        "steps": steps,
    }


def _accuracy(trained: Sequence[Mapping[str, Any]], at_zero: bool) -> float | None:
    """Accuracy at the last log step, by records from the first step on; None where margins do not stand out.

    The first step is logged before any update. Where margins are 0 there, what is seen of them is rounding.
    """
    if not trained:
        return None
    first, last = (abs(record.get("rewards/margins", math.inf)) for record in (trained[0], trained[-1]))
    if at_zero and (len(trained) < 2 or not last > max(_OVER * first, _LEAST)):
        return None
    return trained[-1].get("rewards/accuracies")


def _alike(chosen: Sequence[str], seed: int) -> float | None:
    """Mean similarity of at most ``_PAIRS`` random pairs, one answer to each prompt; None for fewer than two."""
    if len(chosen) < 2:
        return None
    value = among(chosen, pairs=_PAIRS, seed=seed)
    return None if math.isnan(value) else value


def card(recipe: Recipe, data: Sequence[str], run: RunRecord, versions: Mapping[str, Any]) -> str:
    """The model card of a run in rounds."""
    base = recipe.model.id
    sections = {"rounds": recipe.rounds, "sampling": recipe.sampling, "select": recipe.select}
    settings = {name: _set(section.model_dump(exclude={"server"})) for name, section in sections.items() if section}
    facts = CardFacts(
        recipe.name,
        recipe.objective_value(),
        base_model=None if Path(base).exists() else base,
        adapter=recipe.model.lora is not None,
        data=data,
        settings={**settings, "steps": run.steps, "seed": recipe.seed},
        versions=versions,
        verdict=table(run.metrics),
        record=run,
    )
    return model_card(facts)


def _set(section: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in section.items() if value not in (None, []))


def noted(directory: RunDirectory, values: Mapping[str, Any], say: Callable[[str], Any]) -> None:
    """Add a round to ``metrics.jsonl``, once, and say it."""
    if all(line.get("round") != values["round"] for line in directory.metrics()):
        directory.append(METRICS, [values])
    for line in table([values]):
        say(line)


def until_done(echo: Callable[[str], Any]) -> Callable[[str], Any]:
    """Leave out a round's own verdict, which asks for held-out pairs; the table of rounds stands in its place."""
    done = False

    def say(line: str) -> None:
        nonlocal done
        done = done or line.startswith("Done in")
        if not done:
            echo(line)

    return say
