"""A checkpoint of FSDP2 for processes that each hold the whole model, and the other way round.

FSDP2 keeps the states of the optimizer under the names of the weights, and the weights in a file of its own; others
keep the states by number, in the order of the optimizer's groups. Nothing else differs, so it is written anew beside
the checkpoint, for as long as it is read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file

from align.errors import UserError

_OPTIMIZER, _FSDP_OPTIMIZER = "optimizer.pt", "optimizer.bin"
_FSDP_MODEL = "pytorch_model_fsdp.bin"
_FULL = "fsdp_state_dict_type: FULL_STATE_DICT"


@contextmanager
def converted(checkpoint: Path, trainer: Any, *, to_fsdp: bool) -> Iterator[Path]:
    """A folder beside ``checkpoint`` with the same content in the other layout; every process calls it.

    Raises:
        UserError: where FSDP2 has kept, or expects, pieces.
    """
    accelerator = trainer.accelerator
    if not to_fsdp and not (checkpoint / _FSDP_OPTIMIZER).is_file():
        raise UserError(
            f"{checkpoint} holds pieces of the optimizer, which only FSDP2 reads: go on with FSDP2 (with {_FULL} later "
            "checkpoints can be gone on from in any other way)."
        )
    if to_fsdp and "FULL" not in str(accelerator.state.fsdp_plugin.state_dict_type):
        raise UserError(f"{checkpoint} holds the optimizer in one piece: go on with {_FULL}.")
    place = checkpoint.parent / gather_object([f".converted.{uuid4().hex}"])[0]
    if accelerator.is_main_process:
        _write(checkpoint, place, trainer if to_fsdp else None)
    accelerator.wait_for_everyone()
    try:
        yield place
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(place, ignore_errors=True)


def _write(checkpoint: Path, place: Path, to_fsdp: Any) -> None:
    """Fill ``place``; ``to_fsdp`` is the trainer whose model FSDP2 cuts up, or None for the other way."""
    leave = {_OPTIMIZER} if to_fsdp else {_FSDP_OPTIMIZER, _FSDP_MODEL}
    shutil.copytree(checkpoint, place, ignore=lambda _, names: leave & set(names), copy_function=_link)
    if to_fsdp is None:
        state = torch.load(checkpoint / _FSDP_OPTIMIZER, map_location="cpu", weights_only=True)
        torch.save(by_number(state), place / _OPTIMIZER)
        return
    state = torch.load(checkpoint / _OPTIMIZER, map_location="cpu", weights_only=True)
    torch.save(by_name(state, names_in_groups(to_fsdp)), place / _FSDP_OPTIMIZER)
    torch.save(_weights(checkpoint, to_fsdp.model), place / _FSDP_MODEL)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # of a file system without
        shutil.copyfile(source, target)


def by_number(state: Mapping[str, Any]) -> dict[str, Any]:
    """States of an optimizer by the number of the weight, from states by its name."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: of_weight for name, of_weight in state["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]
        ],
    }


def by_name(state: Mapping[str, Any], names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """States of an optimizer by the name of the weight, from states by its number.

    Args:
        names: of the weights in each group.

    Raises:
        UserError: where the optimizer has other groups than those.
    """
    if [len(group["params"]) for group in state["param_groups"]] != [len(mine) for mine in names]:
        raise UserError(
            "train.optim: the optimizer of this checkpoint has groups of its own, which FSDP2 cannot take up: go on "
            "with the launcher configuration of before."
        )
    flat = [name for group in names for name in group]
    return {
        "state": {flat[number]: of_weight for number, of_weight in state["state"].items()},
        "param_groups": [
            {**group, "params": list(mine)} for group, mine in zip(state["param_groups"], names, strict=True)
        ],
    }


def names_in_groups(trainer: Any) -> list[list[str]]:
    """The names of the trained weights in each group of the optimizer that the trainer will make."""
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    return [[name for name in trained if name in decayed], [name for name in trained if name not in decayed]]


def _weights(checkpoint: Path, model: Any) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint under the names that they have in ``model``; of an adapter those that are trained."""
    saved = {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}
    if not hasattr(model, "peft_config"):
        return saved
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    adapter = model.active_adapter
    # peft leaves out the adapter's name, and the place of a module that is saved in full
    named = {name: name.replace(f".modules_to_save.{adapter}", "").replace(f".{adapter}", "") for name in trained}
    return {name: saved[own] for name, own in named.items()}
