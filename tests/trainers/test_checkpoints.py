"""What was added up between two log steps goes on from a checkpoint, on as many processes or on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training import trainer

from align.errors import UserError
from align.objectives import SuperHF
from align.trainers.meter import Meter


def logged(folder: Path, steps: int, **resumed: Any) -> list[dict[str, float]]:
    """What is logged of a run that keeps its best samples, without the clock."""
    made = trainer(folder, SuperHF(), max_steps=6, logging_steps=3, save_strategy="steps", save_steps=2)
    made.echo, made.args.max_steps = (lambda line: None), 6
    if not resumed:
        made.args.max_steps = steps
    made.train(**resumed)
    return [entry for entry in made.state.log_history if "loss" in entry]


def test_the_first_record_behind_a_checkpoint_is_of_all_its_steps(tmp_path: Path) -> None:
    """Step 4 is saved in the middle of the log interval of steps 4 to 6; similarities are over all of its samples."""
    whole = logged(tmp_path / "whole", 6)
    logged(tmp_path / "cut", 4)
    resumed = logged(tmp_path / "cut", 6, resume_from_checkpoint=True)
    assert [entry["step"] for entry in resumed] == [3, 6]
    assert resumed == whole
    assert {"similarity/survivors", "reward/kept", "samples/tokens"} <= set(whole[-1])


def test_only_a_complete_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        logged(tmp_path, 6, resume_from_checkpoint=True)
    assert str(refused.value) == f"{tmp_path} holds no complete checkpoint to go on from."
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    with pytest.raises(UserError) as refused:
        logged(tmp_path, 6, resume_from_checkpoint=str(folder))
    assert str(refused.value) == (
        f"{folder} cannot be gone on from: it has no complete.json, so it was never finished or is none of this "
        "program's."
    )


def test_sums_of_more_or_fewer_processes_are_added_up_on_the_first() -> None:
    states = []
    for rank in range(2):
        meter = Meter()
        meter.add(
            {"loss": (torch.tensor(0.1 + rank), torch.tensor(1.0)), "margin": (torch.tensor(3.0), torch.tensor(2.0))}
        )
        states.append(meter.state())
    total = {"loss": [pytest.approx(1.2), 2.0], "margin": [6.0, 4.0]}
    found = []
    for world in (1, 2, 3):
        for rank in range(world):
            meter = Meter()
            meter.restore(states, rank, world, torch.device("cpu"))
            found.append(meter.state())
    none = {"loss": [0.0, 0.0], "margin": [0.0, 0.0]}
    assert found == [total, *states, total, none, none]
