"""What of a loaded model is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from saved_model import save_model

from align.errors import UserError
from align.models.policy import load_model
from align.recipe.sections import Model


def test_trains_only_what_is_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    model = load_model(Model(id=str(folder), train_only=["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]
    with pytest.raises(UserError, match=r"train_only: no weight of LlamaForCausalLM has 'layers\.9\.' in its name"):
        load_model(Model(id=str(folder), train_only=["layers.9."]))
