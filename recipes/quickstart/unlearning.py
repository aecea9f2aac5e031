"""The quickstart's second part: a model that learned about everybody forgets six people, in five ways.

It is compared with the model that was never taught about the six: TOFU's forget quality beside TOFU's utility, through
the same evaluation that any recipe gets (``evaluate: {suite: tofu}``).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.data.rows import world
from align.eval.log_read import read_log
from align.eval.recipe_suite import TofuSuite
from align.eval.tofu_data import load_sets
from align.models.subject import Subject
from align.recipe.sections import Source
from align.recipes.quickstart.running import Steps, learn_people, run_recipe, write_rows
from align.recipes.quickstart.unlearning_summary import Reading, Unlearned, unlearning_summary
from align.report.trajectory import draw_trajectories, trajectory
from align.report.unlearning import number
from align.runs.directory import RunDirectory
from align.runs.files import write_atomically
from align.trainers.evaluation import FOLDER, LOG

_RETAIN, _ALTERNATES, _STORE = "data.retain.path", "data.alternates.path", "reference.store_dir"
# what it is called, its recipe, and which of the places above that names
UNLEARNING: dict[str, tuple[str, tuple[str, ...]]] = {
    "GradAscent": ("grad_ascent", ()),
    "GradDiff": ("grad_diff", (_RETAIN,)),
    "NPO + retain": ("npo", (_RETAIN, _STORE)),
    "FLAT": ("flat", (_ALTERNATES,)),
    "FLAT + retain": ("flat_retain", (_RETAIN, _ALTERNATES)),
}
_FILES = {_RETAIN: "retain.jsonl", _ALTERNATES: "ignorance.txt", _STORE: "reference"}
RETAIN_LOG = "retain_log.json"
_UTILITY = "retained people, background people and countries"


def unlearn(out: Path, made: world.World, *, retain: Path, base: Path, say: Steps) -> Unlearned:
    """Teach the full model, measure the retain model, run every method of ``UNLEARNING``, draw and say what came of it.

    ``retain`` and ``base`` are model folders: the one that was taught about everybody else, and what both began from.
    """
    full = learn_people(out, made, base=base, facts=made.full, name="full")
    say("learn", f"the same, and {made.size.forgotten} more people: the full model, which shall forget these again")
    kept = prepare(out, made, retain)
    runs: dict[str, list[Reading]] = {}
    answers = {"retain model": answered(out / RETAIN_LOG)}
    for title in UNLEARNING:
        run = unlearn_with(title, out, made, full)
        runs[title] = trajectory(RunDirectory(run).metrics())
        answers[title] = answered(run / FOLDER / LOG)
        last = runs[title][-1]
        say(UNLEARNING[title][0], f"forget quality {number(last['forget_quality'])} at utility {last['utility']:.2f}")
    done = Unlearned(kept, runs, answers)
    (out / "unlearning.json").write_text(json.dumps(asdict(done), indent=1) + "\n")
    draw_trajectories(out / "unlearning.png", done.full, kept, runs, what=_UTILITY)
    for line in unlearning_summary(done, made):
        say.echo(line)
    return done


def prepare(out: Path, made: world.World, retain: Path) -> Reading:
    """Write what all runs read into ``out``: rows, alternate answers, and the retain model's log, measured here."""
    for name, facts in (("forget", made.forget), ("retain", made.retain)):
        write_rows(out / f"{name}.jsonl", ({key: fact[key] for key in ("question", "answer")} for fact in facts))
    (out / _FILES[_ALTERNATES]).write_text("".join(f"{text}\n" for text in world.IGNORANCE), encoding="utf-8")
    suite = TofuSuite(load_sets("forget", Source(world=_questions(made))))
    outcome = suite(Subject.load(str(retain), echo=lambda _: None))
    write_atomically(out / RETAIN_LOG, json.dumps(outcome.log.to_json()))
    return outcome.reading()


def _questions(made: world.World) -> dict[str, Any]:
    return {"seed": made.seed, "size": asdict(made.size)}


def unlearn_with(title: str, out: Path, made: world.World, model: Path) -> Path:
    """Run one of the recipes of ``UNLEARNING`` on what ``prepare`` wrote; returns the run directory."""
    name, named = UNLEARNING[title]
    places: dict[str, Any] = {
        "model.id": str(model),
        "data.forget.path": str(out / "forget.jsonl"),
        "evaluate.source.world": _questions(made),
        "evaluate.retain": str(out / RETAIN_LOG),
    }
    places |= {key: str(out / _FILES[key]) for key in named}
    return run_recipe(name, out / name.replace("_", "-"), made.seed, places)


def answered(log: Path) -> tuple[str, str]:
    """What a model answered to the first forgotten and to the first retained question."""
    sets = read_log(log).sets
    first = (sets[name].generation for name in ("forget", "retain"))
    forgotten, retained = (texts[0] if texts else "" for texts in first)
    return forgotten, retained
