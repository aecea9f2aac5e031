"""Files without some of a model's or an adapter's weights are refused wherever a model is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import adapter, base
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertModel
from zoo import ARCHITECTURES, tiny_model

from align.errors import UserError
from align.export.source import find
from align.judges.checkpoint import find_judge_model, load_judge_model
from align.models.complete import language_model
from align.models.load import load_checkpoint
from align.models.policy import load_model
from align.recipe.sections import Lora, Model


def renamed(path: Path, change: Callable[[str], str | None]) -> None:
    """Another name for each tensor of a file, or none, so that it is left out."""
    tensors = {new: value for name, value in load_file(path).items() if (new := change(name)) is not None}
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "read", [lambda path: load_model(Model(id=path)), load_checkpoint], ids=["policy", "checkpoint"]
)
def test_a_model_without_some_of_its_weights_is_refused(read: Callable[[str], Any], tmp_path: Path) -> None:
    place = base(tmp_path / "base")
    renamed(place / "model.safetensors", lambda name: None if ".layers.1." in name else name)
    expected = r"has no weights for model\.layers\.1\.\S+, \S+, \S+ and 6 more, which would be random"
    with pytest.raises(UserError, match=expected):
        read(str(place))


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    """An encoder has no head that predicts the next token under this name."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=20, is_decoder=True, **sizes))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no weights for cls\.predictions"):
        load_model(Model(id=str(tmp_path)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_models_are_read(name: str, tmp_path: Path) -> None:
    """Of every architecture, tied weights among them, with and without a type."""
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    for options in ({}, {"dtype": torch.bfloat16}):
        found = language_model("model.id", str(tmp_path), **options).state_dict()
        assert found.keys() == model.state_dict().keys()


@pytest.fixture
def misnamed(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and an adapter whose weights are named as in a model with a part for images."""
    under = base(tmp_path / "base")
    place = adapter(tmp_path / "adapter", under)
    renamed(
        place / "adapter_model.safetensors", lambda name: name.replace("model.layers", "model.language_model.layers")
    )
    return under, place


WRONG = (
    r"it has no weights for \d+ of the places that it changes in this model, such as base_model\.model\.model\.layers"
)


def test_an_adapter_that_fits_nowhere_is_refused(misnamed: tuple[Path, Path]) -> None:
    under, place = misnamed
    with pytest.raises(UserError, match=rf"adapter cannot be loaded \({WRONG}"):
        load_checkpoint(str(place))
    with pytest.raises(UserError, match=rf"model\.lora\.adapter: .* cannot be put on .*{WRONG}"):
        load_model(Model(id=str(under), lora=Lora(adapter=str(place))))
    with pytest.raises(UserError, match=rf"the adapter cannot be put on .*{WRONG}"):
        find(place).load(print)
    with pytest.raises(UserError, match=rf"judge\.pairs: .* cannot be loaded \({WRONG}"):
        load_judge_model("judge.pairs", AutoModelForCausalLM, str(place), None, "auto", None)


def test_the_model_under_a_judges_adapter_is_of_the_revision_that_it_was_trained_on(tmp_path: Path) -> None:
    place = adapter(tmp_path / "adapter", base(tmp_path / "base"), reward=True)
    settings = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(settings | {"revision": "0123abc"}))
    kind = AutoModelForSequenceClassification
    assert find_judge_model("judge.reward", kind, str(place), None, None).revision == "0123abc"
    assert find_judge_model("judge.reward", kind, str(place), "def", None).revision == "def"
    assert find_judge_model("judge.reward", AutoModelForCausalLM, str(tmp_path / "base"), None, None).revision is None
