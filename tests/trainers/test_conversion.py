"""States of an optimizer by number and by name are the same states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from training import trainer

from align.errors import UserError
from align.objectives import DPO
from align.trainers.conversion import by_name, by_number, names_in_groups


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


def test_an_optimizer_with_groups_of_its_own_is_refused(tmp_path: Path) -> None:
    state = {"state": {}, "param_groups": [{"params": [0, 1]}]}
    with pytest.raises(UserError, match="the optimizer of this checkpoint has groups of its own"):
        by_name(state, [["a"], ["b"]])
