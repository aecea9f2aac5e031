"""Rows that are not at hand, counted as long as they may be, such as pairs that rounds are still to draw."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from align.data.load import Data

if TYPE_CHECKING:
    from align.recipe import Recipe


def longest_rows() -> Data:
    """A stream without lengths; a plan counts each of its rows as long as the recipe allows."""
    return Data(iter(()), None, None, None)  # type: ignore[arg-type]


def with_steps(recipe: Recipe, rows: int, processes: int) -> Recipe:
    """The recipe with the steps that so many rows make on so many processes, unless it says ``train.max_steps``."""
    if recipe.train.get("max_steps", -1) > 0:
        return recipe
    args = recipe.model_copy(update={"train": {**recipe.train, "bf16": False, "fp16": False}}).training_arguments()
    each = math.ceil(rows / (args.per_device_train_batch_size * args.gradient_accumulation_steps * processes))
    return recipe.model_copy(update={"train": {**recipe.train, "max_steps": math.ceil(each * args.num_train_epochs)}})
