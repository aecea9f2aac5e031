"""What of a loaded model is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saved_model import save_model
from transformers import AutoModelForCausalLM

from align.errors import UserError
from align.models.load import load_checkpoint
from align.models.policy import load_model
from align.recipe.sections import Lora, Model


def test_trains_only_what_is_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    model = load_model(Model(id=str(folder), train_only=["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]
    with pytest.raises(UserError, match=r"train_only: no weight of LlamaForCausalLM has 'layers\.9\.' in its name"):
        load_model(Model(id=str(folder), train_only=["layers.9."]))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator keeps the checkpoint's own type")
def test_on_a_cpu_weights_are_float32_unless_a_type_is_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    AutoModelForCausalLM.from_pretrained(folder).bfloat16().save_pretrained(folder)
    adapter = Lora(rank=2)
    assert load_model(Model(id=str(folder), lora=adapter)).dtype == torch.float32
    assert load_model(Model(id=str(folder), lora=adapter, dtype="bfloat16")).dtype == torch.bfloat16
    assert load_checkpoint(str(folder))[0].dtype == torch.float32
    assert load_checkpoint(str(folder), "bfloat16")[0].dtype == torch.bfloat16
