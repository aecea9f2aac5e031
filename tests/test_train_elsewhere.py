"""What is said, and what is refused, where a run goes on with other packages, processes or batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from align.errors import UserError
from align.runs.checkpoints import Checkpoint
from align.runs.directory import RunDirectory
from align.training.lock import otherwise
from align.training.resume import check_step, where_from


def test_other_packages_and_another_device_are_said() -> None:
    before = {"versions": {"torch": "2.12.0", "trl": "1.16.0", "gone": "1"}, "device": "NVIDIA H100"}
    now = {"versions": {"torch": "2.13.0", "trl": "1.16.0", "new": "2"}, "device": "cpu", "mixed_precision": "no"}
    assert otherwise(before, now) == [
        "note: the run goes on with torch 2.13.0 (it was 2.12.0), device cpu (it was NVIDIA H100): results may differ "
        "by more than rounding"
    ]
    assert otherwise(now, now) == []


def test_what_differs_on_other_processes_is_said_and_what_cannot_go_on_is_refused(tmp_path: Path) -> None:
    def said(then: tuple[str, int], now: tuple[str, int]) -> list[str]:
        return where_from(Checkpoint(tmp_path / "checkpoint-8", "id", 8, then[1], then[0], {}), now[1], now[0])

    for same in (("single", 1), ("ddp", 8), ("zero3", 2)):
        assert said(same, same) == ["resuming from checkpoint-8"]
    differs = (
        "note: checkpoint-8 was written by {}. Rows come in the same order and the optimizer goes on, but {} adds up "
        "in another order, which changes the last digits, and an adapter's dropout draws other numbers"
    )
    assert said(("ddp", 2), ("single", 1))[1:] == [differs.format("2 processes of ddp", "one process")]
    assert said(("fsdp2", 4), ("fsdp2", 8))[1:] == [differs.format("4 processes of fsdp2", "8 processes of fsdp2")]
    assert said(("single", 1), ("fsdp2", 2))[1:] == [differs.format("one process", "2 processes of fsdp2")]
    for then, now in ((("zero3", 2), ("zero3", 4)), (("zero2", 2), ("ddp", 2)), (("ddp", 2), ("zero2", 2))):
        with pytest.raises(UserError) as refused:
            said(then, now)
        was, here = (f"{processes} processes of {how}" for how, processes in (then, now))
        assert str(refused.value) == (
            f"checkpoint-8 was written by {was}, and {here} cannot take up its optimizer. Go on with {was}, or start a "
            f"new run from its weights: another name=, and model.id={tmp_path}/checkpoint-8."
        )


@pytest.mark.parametrize(
    ("size", "steps", "world", "cure"),
    [
        (4, 1, 2, "Set train.gradient_accumulation_steps=3."),
        (16, 1, 2, "Set train.per_device_train_batch_size=12 and train.gradient_accumulation_steps=1."),
        (4, 1, 5, "Start as many processes as divide 24."),
    ],
)
def test_a_step_of_other_size_is_refused_with_the_numbers_that_cure_it(
    tmp_path: Path, size: int, steps: int, world: int, cure: str
) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_lock({"recipe": {}, "examples_per_step": 24})
    numbers = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "world_size": world}
    with pytest.raises(UserError) as refused:
        check_step(directory, SimpleNamespace(**numbers))
    assert str(refused.value) == (
        f"{tmp_path}: an optimizer step of this run has 24 examples, and now it would have {size * steps * world} "
        f"(train.per_device_train_batch_size {size} x train.gradient_accumulation_steps {steps} x {world} processes). "
        f"{cure}"
    )
    check_step(directory, SimpleNamespace(**numbers | {"per_device_train_batch_size": 12, "world_size": 2}))
