"""Whether the store of reference log-probs has a recipe's rows, as far as that can be told without the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from align.reference.store import LogProbStore
from align.runs.files import cache_folder
from align.runs.models import located
from align.runs.quiet import silent
from align.trainers.coverage import coverage_of

if TYPE_CHECKING:
    from align.data.load import Data
    from align.recipe import Recipe

_LOOKED_AT = 256  # rows
_LARGEST = 2**16  # bytes of a description


def store_folder(recipe: Recipe) -> Path | None:
    """The folder of all stores of reference log-probs, or None where the recipe keeps none."""
    if not recipe.reference.store:
        return None
    folder = recipe.reference.store_dir
    return cache_folder() / "reference" if folder is None else Path(folder)


def is_stored(recipe: Recipe, data: Data, args: Any) -> bool:
    """Whether a store of this model, by its name, has the first rows.

    A store belongs to the digest of the weights, which are not read here: where they changed since, it will not do.
    """
    root, objective = store_folder(recipe), recipe.objective_value()
    if root is None or not objective.needs_reference or recipe.reference.sync_every is not None:
        return False
    if not isinstance(data.train, Dataset) or not len(data.train):
        return False
    wide = "float32" if recipe.model.dtype == "auto" else recipe.model.dtype
    computes_in = "bfloat16" if args.bf16 else "float16" if args.fp16 else wide
    first = data.train.select(range(min(len(data.train), _LOOKED_AT)))
    name = located(recipe.model.id, recipe.base)
    for folder in sorted(root.glob("*/about.json")):
        about = _about(folder)
        if (about.get("model"), about.get("compute_dtype")) != (name, computes_in):
            continue
        found = coverage_of(LogProbStore(root, folder.parent.name, say=silent), objective, (first,))
        if found is not None and found.stored and not found.computed:
            return True
    return False


def _about(file: Path) -> dict[str, Any]:
    """What a store says of itself; nothing where that is damaged."""
    try:
        found = json.loads(file.read_bytes()) if file.stat().st_size <= _LARGEST else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
