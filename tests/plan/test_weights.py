"""The weights of a recipe's model: counts worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saved_model import save_model
from zoo import tiny_model

from align.plan.weights import Weights, policy, weigh
from align.recipe import Recipe

# embedding and head, and of two layers attention, its keys and values, three maps, two norms; and the last norm
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
MAPS = LAYER - 2 * 32
WEIGHTS = 2 * 97 * 32 + 2 * LAYER + 32
# rank 4 on seven linear maps of a layer
ADAPTER = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)  # a number, a byte of scale for 64, and a float32 for 256 of those


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("size") / "model")


def weights(folder: Path, model: dict[str, Any], device: str = "cuda") -> Weights:
    recipe = Recipe.from_dict(
        {
            "name": "r",
            "model": {"id": str(folder), "dtype": "float32", **model},
            "data": {"train": {"world": "preferences"}},
            "objective": {"name": "simpo"},
        }
    )
    return weigh(policy(recipe, device), recipe.model.load_in)


@pytest.mark.parametrize(
    ("model", "elements", "size", "trained"),
    [
        ({}, WEIGHTS, 4 * WEIGHTS, WEIGHTS),
        ({"dtype": "bfloat16"}, WEIGHTS, 2 * WEIGHTS, WEIGHTS),
        ({"train_only": ["mlp.down_proj"]}, WEIGHTS, 4 * WEIGHTS, 2 * 48 * 32),
        (
            {"dtype": "bfloat16", "lora": {"rank": 4}},
            WEIGHTS + 2 * ADAPTER,
            2 * WEIGHTS + 4 * 2 * ADAPTER,
            2 * ADAPTER,
        ),
    ],
)
def test_weights_and_what_of_them_is_trained(
    folder: Path, model: dict[str, Any], elements: int, size: int, trained: int
) -> None:
    found = weights(folder, model)
    assert (found.sum("elements"), found.sum("bytes"), found.sum("trained")) == (elements, size, trained)
    assert not found.tied
    assert found.divisible


def test_parts_are_the_embedding_the_layers_and_the_rest(folder: Path) -> None:
    found = weights(folder, {})
    assert [part.elements for part in found.parts] == [97 * 32, LAYER, LAYER, 97 * 32 + 32]
    assert found.layers[0].largest == 4 * 32 * 48
    # sums over rows and columns of every matrix in float32; a norm is as wide as it is
    assert found.layers[0].rows == 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48) + 2 * 32)


def test_experts_that_a_token_is_not_sent_to_are_idle(tmp_path: Path) -> None:
    tiny_model("qwen3_moe").save_pretrained(tmp_path)  # two of four experts, of three maps of 16 by 32, in two layers
    assert weights(tmp_path, {}).idle == 2 * 2 * 3 * 16 * 32
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    assert weights(tmp_path / "dense", {}).idle == 0


def test_a_tied_head_counts_once(tmp_path: Path) -> None:
    found = weights(save_model(tmp_path / "tied", tie_word_embeddings=True), {})
    assert found.tied
    assert found.sum("elements") == WEIGHTS - 97 * 32
    assert found.rest.elements == 32


def test_beside_quantised_weights_a_cpu_keeps_float32(tmp_path: Path) -> None:
    """As ``load_model`` does, whatever type the checkpoint has."""
    folder = save_model(tmp_path / "model")
    changed = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(changed))
    found = weights(folder, {"load_in": "4bit", "dtype": "auto", "lora": {"rank": 4}}, "cpu")
    quantised = 2 * MAPS
    expected = FOUR_BITS * quantised + 4 * (WEIGHTS - quantised) + 4 * 2 * ADAPTER
    assert found.sum("bytes") == pytest.approx(expected, abs=14)


def test_four_bits_are_those_of_the_layers_linear_maps_alone(folder: Path) -> None:
    found = weights(folder, {"load_in": "4bit", "dtype": "bfloat16", "lora": {"rank": 4}})
    quantised = 2 * MAPS
    expected = FOUR_BITS * quantised + 2 * (WEIGHTS - quantised) + 4 * 2 * ADAPTER
    assert found.sum("bytes") == pytest.approx(expected, abs=14)  # each of 14 matrices is rounded up to a byte
    assert not found.divisible
