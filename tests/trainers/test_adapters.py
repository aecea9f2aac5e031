"""Adapters as models: a run goes on from one, or says how; what is trained is what will be saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from saved_model import rows, save_model, tokenizer
from training import trainer
from transformers import AutoModelForCausalLM
from zoo import tiny_model

from align import DPO, NPO
from align.errors import UserError
from align.objectives.rmu import RMU
from align.recipe import Recipe
from align.train import run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, prepared pairs and rows to forget, and the LoRA run ``first``, two steps long."""
    folder = tmp_path_factory.mktemp("world")
    save_model(folder / "base")
    pairs = rows(16)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    same = ("forget_ids", "retain_ids")
    forget = [{"prompt_ids": row["prompt_ids"], **dict.fromkeys(same, row["chosen_ids"])} for row in pairs]
    (folder / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in forget))
    train(folder, "first", {"id": "base", "lora": {"rank": 4}}, save_strategy="steps", save_steps=1)
    return folder


def train(world: Path, name: str, model: dict[str, Any], objective: str = "dpo", **settings: Any) -> list[str]:
    """Two steps of a recipe in the folder; returns what was said."""
    data = {"forget": {"path": "forget.jsonl"}} if objective in ("npo", "rmu") else {"train": {"path": "pairs.jsonl"}}
    objectives: Any = {"name": objective} | ({"layer": 0} if objective == "rmu" else {})
    if objective == "rmu":
        data["retain"] = {"path": "forget.jsonl"}
    made = Recipe.from_dict(
        {
            "name": name,
            "model": {"dtype": "float32", **model},
            "data": data,
            "objective": objectives,
            "reference": {"store": False},
            "watch": {"report": False},
            "output": str(world / name),
            "train": {
                "max_steps": 2,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-2,
                "use_cpu": True,
                "gradient_checkpointing": False,
                "save_strategy": "no",
                **settings,
            },
        },
        base=world,
    )
    lines: list[str] = []
    run(made, echo=lines.append)
    return lines


@pytest.mark.parametrize("folder", ["first", "first/model", "first/checkpoint-1"])
@pytest.mark.parametrize("objective", ["dpo", "npo", "rmu"])
@pytest.mark.parametrize("more", [{}, {"lora": {"rank": 4}}, {"train_only": ["layers.1."]}], ids=["", "lora", "only"])
def test_an_adapter_is_no_model(world: Path, folder: str, objective: str, more: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        train(world, "refused", {"id": folder, **more}, objective)
    assert str(caught.value) == (
        f"model.id: {folder!r} is an adapter, not a model. To go on training it, set model.id to the model under it "
        f"({world / 'base'}) and model.lora to {{adapter: {folder}}}. To train anything else on top of it, merge it "
        f"into that model first (align export {folder} --merge) and name the merged folder."
    )
    assert not (world / "refused" / "recipe.lock.yaml").exists()


@pytest.mark.parametrize("adapter", ["first", "first/model"])
def test_goes_on_from_the_adapter_of_a_run(world: Path, adapter: str) -> None:
    name = f"second-{len(adapter)}"
    lines = train(world, name, {"id": "base", "lora": {"adapter": adapter}})
    assert not any("WARNING" in line for line in lines)
    before = load_file(world / "first/model/adapter_model.safetensors")
    after = load_file(world / name / "model/adapter_model.safetensors")
    assert set(before) == set(after)
    assert all(not torch.equal(before[key], after[key]) for key in before)
    # from where the first one ended, not from anew: two steps of Adam move a weight by at most about two rates
    assert max((before[key] - after[key]).abs().max() for key in before) < 0.025


def test_goes_on_from_a_run_of_whole_weights(world: Path) -> None:
    train(world, "whole", {"id": "base"})
    train(world, "on", {"id": "whole", "train_only": ["layers.1.mlp.down_proj"]})
    before, after = (load_file(world / name / "model/model.safetensors") for name in ("whole", "on"))
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]


def test_a_run_without_a_model_says_so(world: Path, tmp_path: Path) -> None:
    (world / "broken").mkdir()
    (world / "broken" / "recipe.lock.yaml").write_text("recipe: {}\n")
    with pytest.raises(UserError, match=r"broken is a run without a model: it ended before .*broken/model was written"):
        train(world, "never", {"id": "broken"})


def test_an_adapter_of_another_model(world: Path) -> None:
    other = save_model(world / "other")
    lines = train(world, "mixed", {"id": "other", "lora": {"adapter": "first"}})
    assert lines[0] == (
        f"WARNING: the adapter first was trained on {world / 'base'}, and model.id is other. Unless both hold the same "
        "weights, the result is neither: set model.id to the first."
    )
    tiny_model(intermediate_size=64).save_pretrained(world / "wide")
    tokenizer().save_pretrained(world / "wide")
    with pytest.raises(UserError) as caught:
        train(world, "wider", {"id": "wide", "lora": {"adapter": "first"}})
    assert str(caught.value) == (
        f"model.lora.adapter: 'first' cannot be put on {world / 'wide'} (its weights have other shapes than this "
        f"model's). It was trained on {world / 'base'}: name that in model.id."
    )
    with pytest.raises(UserError, match=r"model.lora.adapter: 'other' holds no adapter"):
        train(world, "none", {"id": "base", "lora": {"adapter": "other"}})
    assert other.exists()


def base_of(world: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(world / "base")


def adapted(world: Path) -> Any:
    return get_peft_model(base_of(world), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize("objective", [DPO(), NPO(), RMU(layer=0)], ids=["dpo", "npo", "rmu"])
@pytest.mark.parametrize("kind", ["loaded without is_trainable", "frozen"])
def test_nothing_to_train(world: Path, tmp_path: Path, kind: str, objective: Any) -> None:
    model = base_of(world)
    if kind == "frozen":
        model.requires_grad_(False)
    else:
        model = PeftModel.from_pretrained(model, world / "first/model")
    with pytest.raises(UserError, match=r"^Nothing would be trained: no weight of the model takes a gradient.*is_tr"):
        trainer(tmp_path, objective, model=model)


def test_an_adapter_that_transformers_loaded(world: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "first/model")
    with pytest.raises(UserError, match=r"^transformers has put an adapter on this model, which is not trained on"):
        trainer(tmp_path, DPO(), model=model)
    with pytest.raises(UserError, match="first/model' is an adapter, not a model"):
        trainer(tmp_path, DPO(), model=str(world / "first"))


def test_what_is_trained_is_what_is_saved(world: Path, tmp_path: Path) -> None:
    model = adapted(world)
    model.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(UserError) as caught:
        trainer(tmp_path, DPO(), model=model)
    assert str(caught.value) == (
        "1 weights would be trained and not be saved, such as base_model.model.model.norm.weight: a model with an "
        "adapter saves the adapter alone. Freeze them, or name their modules in modules_to_save."
    )
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    made = trainer(tmp_path, DPO(), model=base_of(world), peft_config=config)
    made.train()
    made.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved/adapter_model.safetensors")
    trained = [p for p in made.model.parameters() if p.requires_grad]
    assert len(saved) == len(trained) == 9  # two layers of A and B, and all five norms
    assert all(any(torch.equal(weight, part) for part in saved.values()) for weight in trained)


def test_an_adapter_on_an_adapter(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^The model has an adapter already: leave peft_config out to go on training"):
        trainer(tmp_path, DPO(), model=adapted(world), peft_config=LoraConfig(target_modules=["q_proj"]))
