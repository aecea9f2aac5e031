"""States of an optimizer by number and by name are the same states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from training import trainer
from zoo import tiny_classifier

from align.errors import UserError
from align.objectives import DPO
from align.trainers.conversion import _weights, by_name, by_number, names_in_groups


def trained(folder: Path) -> Any:
    made = trainer(folder, DPO(), max_steps=2, optim="adamw_torch", weight_decay=0.1)
    made.echo = lambda line: None
    made.train()
    return made


def test_numbers_and_names_are_those_of_torch(tmp_path: Path) -> None:
    """What torch gathers for FSDP2 is the oracle, for a model that is not cut up."""
    made = trained(tmp_path)
    numbered = made.optimizer.state_dict()
    named = get_optimizer_state_dict(made.model, made.optimizer, options=StateDictOptions(full_state_dict=True))
    names = names_in_groups(made)
    assert [len(group) for group in names] == [len(group["params"]) for group in numbered["param_groups"]]
    assert all(len(group) > 2 for group in names)  # with and without weight decay
    ours = by_name(numbered, names)
    assert ours["param_groups"] == [dict(group) for group in named["param_groups"]]
    assert ours["state"].keys() == named["state"].keys()
    for name, state in named["state"].items():
        assert all(torch.equal(ours["state"][name][key], value) for key, value in state.items())
    back = by_number(ours)
    assert back["param_groups"] == numbered["param_groups"]
    assert all(
        torch.equal(back["state"][number][key], value)
        for number, state in numbered["state"].items()
        for key, value in state.items()
    )


def test_weights_of_an_adapter_are_found_also_where_a_module_is_saved_in_full(tmp_path: Path) -> None:
    """As every adapter of a reward model has its head."""
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"], task_type="SEQ_CLS")
    model = get_peft_model(tiny_classifier(), config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.rand_like(weight))
    model.save_pretrained(tmp_path)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = _weights(tmp_path, model)
    assert found.keys() == trained.keys()
    assert any("score" in name for name in found)
    assert all(torch.equal(found[name], weight) for name, weight in trained.items())


def test_an_optimizer_with_groups_of_its_own_is_refused(tmp_path: Path) -> None:
    state = {"state": {}, "param_groups": [{"params": [0, 1]}]}
    with pytest.raises(UserError, match="the optimizer of this checkpoint has groups of its own"):
        by_name(state, [["a"], ["b"]])
