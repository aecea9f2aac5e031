"""No pickle in a checkpoint runs code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as sharded
from torch.distributed.checkpoint.api import CheckpointException

from align.trainers.untrusted import weights_only


class Evil:
    """Makes a folder when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_a_reader_that_asks_for_any_pickle_gets_tensors_alone(tmp_path: Path) -> None:
    """As DeepSpeed asks."""
    torch.save({"weights": torch.arange(3), "more": Evil(tmp_path / "run")}, tmp_path / "evil.pt")
    torch.save({"weights": torch.arange(3)}, tmp_path / "good.pt")
    with weights_only():
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "evil.pt", weights_only=False)
        assert torch.load(tmp_path / "good.pt", weights_only=False)["weights"].tolist() == [0, 1, 2]
    assert not (tmp_path / "run").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # elsewhere nothing has changed
    assert (tmp_path / "run").is_dir()


@pytest.mark.filterwarnings("ignore")
def test_the_index_of_a_sharded_checkpoint_is_read_and_runs_nothing(tmp_path: Path) -> None:
    state = {
        "model": {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"state": {"a": {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.1, "params": ["a"]}]},
    }
    sharded.save(state, checkpoint_id=tmp_path / "good")
    empty = {"model": {"a": torch.zeros(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}}
    with weights_only():
        sharded.load(empty, checkpoint_id=tmp_path / "good")
    assert torch.equal(empty["model"]["a"], state["model"]["a"])  # type: ignore[index]
    for evil in (pickle.dumps(Evil(tmp_path / "run")), b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93."):
        (tmp_path / "good/.metadata").write_bytes(evil)
        with weights_only(), pytest.raises(CheckpointException, match="the index of a checkpoint does not hold"):
            sharded.load(empty, checkpoint_id=tmp_path / "good")
    assert not (tmp_path / "run").exists()
