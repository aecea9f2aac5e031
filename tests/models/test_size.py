"""What a run keeps in memory, by the model's structure: counts worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved_model import save_model

from align.models.size import training_size
from align.recipe import Recipe

# embedding and head, and of two layers attention, its keys and values, three maps, two norms; and the last norm
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
WEIGHTS = 2 * 97 * 32 + 2 * LAYER + 32
# rank 4 on seven linear maps of two layers
ADAPTER = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("size") / "model")


@pytest.mark.parametrize(
    ("model", "objective", "weights", "trained", "reference"),
    [
        ({}, "dpo", 4 * WEIGHTS, 4 * WEIGHTS, 4 * WEIGHTS),
        ({}, "simpo", 4 * WEIGHTS, 4 * WEIGHTS, 0),
        ({"dtype": "bfloat16"}, "simpo", 2 * WEIGHTS, 2 * WEIGHTS, 0),
        ({"train_only": ["mlp.down_proj"]}, "simpo", 4 * WEIGHTS, 4 * 2 * 48 * 32, 0),
        ({"dtype": "bfloat16", "lora": {"rank": 4}}, "dpo", 2 * WEIGHTS + 4 * ADAPTER, 4 * ADAPTER, 0),
        ({"load_in": "4bit", "lora": {"rank": 4}}, "dpo", WEIGHTS // 2 + 4 * ADAPTER, 4 * ADAPTER, 0),
    ],
)
def test_bytes_that_stay(
    folder: Path, model: dict[str, Any], objective: str, weights: int, trained: int, reference: int
) -> None:
    recipe = Recipe.from_dict(
        {
            "name": "r",
            "model": {"id": str(folder), "dtype": "float32", **model},
            "data": {"train": {"world": "preferences"}},
            "objective": {"name": objective},
        }
    )
    size = training_size(recipe)
    assert (size.weights, size.trained, size.reference) == (weights, trained, reference)
    assert size.divisible == ("load_in" not in model)
