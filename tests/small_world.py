"""A small generated world for tests of the small recipes: a model that learned it, its pairs, and packaged recipes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.data.rows import world
from align.recipe import load_recipe
from align.recipes.quickstart.demo import learn, make_pairs
from align.recipes.quickstart.measure import Scorer
from align.recipes.quickstart.running import calm, write_rows
from align.train import run

SMALL = world.Size(people=12, forgotten=4, background=6, strangers=2, base_epochs=12, tune_epochs=10)


def teach(folder: Path, size: world.Size = SMALL) -> Path:
    """Fill the folder with a model that learned the world, its pairs, and held-out ones: 80 and 40 of the small one."""
    made = world.build(0, size)
    with calm():
        scorer = Scorer(learn(folder, made))
        write_rows(folder / "pairs.jsonl", make_pairs(scorer, world.candidate_rows(made.forget)))
        write_rows(folder / "held_out.jsonl", make_pairs(scorer, world.candidate_rows(made.strangers)))
    return folder


def trained(name: str, places: dict[str, Any], out: Path, *more: str, allow_code: bool = False) -> tuple[Any, Any]:
    """Run a packaged recipe in its place, with other ``places`` by key; its result and what it said."""
    shutil.rmtree(out, ignore_errors=True)
    lines: list[str] = []
    given = {key: str(value) if isinstance(value, Path) else value for key, value in places.items()}
    given |= {"output": str(out), "watch.report": False}
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    with calm():
        result = run(load_recipe(name, [*overrides, *more]), allow_code=allow_code, echo=lines.append)
    return result, lines


def trained_reward(folder: Path, out: Path, *more: str) -> tuple[Any, list[str]]:
    """Run recipes/reward/world.yaml on this world, in place of the quickstart's."""
    size = asdict(SMALL)
    places = {
        "model.id": folder / "model",
        "data.train.world": {"kind": "preferences", "size": size},
        "data.held_out.world": {"kind": "preferences_reworded", "size": size},
    }
    return trained("reward/world", places, out, *more)
