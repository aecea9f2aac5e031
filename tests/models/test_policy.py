"""What of a loaded model is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
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


HEAD, EMBEDDING = "the output head", "the embedding, whose weight is the output head's as well"


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("tied", "adapter", "part"),
    [
        (False, {"target_modules": ["q_proj", "lm_head"]}, HEAD),
        (False, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, HEAD),
        (True, {"target_modules": ["q_proj", "embed_tokens"]}, EMBEDDING),
        (False, {"target_modules": ["q_proj", "embed_tokens"]}, None),
        (True, {"target_modules": ["q_proj"]}, None),
    ],
)
def test_an_adapter_that_changes_the_head(tmp_path: Path, tied: bool, adapter: dict, part: str | None) -> None:
    folder, made = save_model(tmp_path / "model", tie_word_embeddings=tied), tmp_path / "adapter"
    model = load_model(Model(id=str(folder)))
    get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **adapter)).save_pretrained(made)
    section = Model(id=str(folder), lora=Lora(adapter=str(made)))
    if part is None:
        assert any(weight.requires_grad for weight in load_model(section).parameters())
        return
    with pytest.raises(UserError) as refused:
        load_model(section)
    assert str(refused.value) == (
        f"model.lora.adapter: {str(made)!r} changes {part}. The head is scored in pieces and stays as it is under an "
        "adapter: take one that leaves it alone, or a fresh one (model.lora: {rank: 16})."
    )
