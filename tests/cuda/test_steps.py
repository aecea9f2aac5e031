"""Steps of a trainer on the device: memory stays flat, and between log steps nothing waits for the device."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from training import pairs, trainer
from transformers import TrainerCallback
from zoo import tiny_model, token_ids

from align.objectives import DPO

WARM_UP, MEASURED = 10, 50


def equal_rows(count: int) -> Dataset:
    """Prepared pairs of one shape."""
    ids = token_ids(0)
    return Dataset.from_list(
        [{"prompt_ids": ids(9), "chosen_ids": ids(7), "rejected_ids": ids(5)} for _ in range(count)]
    )


def bytes_in_use(device: torch.device) -> int:
    """Of tensors on a GPU; for a CPU a stand-in, all storages that Python still can reach."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided
    }
    return sum(storages.values())


class AfterEachStep(TrainerCallback):
    def __init__(self, measure: Callable[[], int]) -> None:
        self.measure, self.seen = measure, []  # type: tuple[Callable[[], int], list[int]]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(self.measure())


def test_memory_stays_flat_over_fifty_steps(device: torch.device, tmp_path: Path) -> None:
    memory = AfterEachStep(lambda: bytes_in_use(device))
    steps = WARM_UP + MEASURED
    made = trainer(
        tmp_path, DPO(), equal_rows(16), callbacks=[memory], optim="adamw_torch", max_steps=steps, logging_steps=5,
        use_cpu=device.type == "cpu", bf16=True,
    )  # fmt: skip
    made.train()
    assert len(memory.seen) == steps
    weights = sum(p.numel() * p.element_size() for p in made.model.parameters())
    before, after = max(memory.seen[:WARM_UP]), max(memory.seen[-WARM_UP:])
    assert after > 3 * weights  # policy, reference and one state of Adam at the least: the figure is of this run
    # a whole step's graph, kept by mistake, would be more than this every time
    assert after - before <= 4096


class Watched(TrainerCallback):
    """Forbids to wait for the device from the begin of a step to the end of the last one before a log."""

    def __init__(self, forbid: Callable[[str], Any], after: int) -> None:
        self.forbid, self.after = forbid, after
        self.steps: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # kernels are chosen, built and loaded in the first steps
        if state.global_step >= self.after and (state.global_step + 1) % args.logging_steps:
            self.forbid("error")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # stays forbidden into the planning of the next step, unless that one logs
        if state.global_step > self.after and state.global_step % args.logging_steps:
            self.steps.append(state.global_step)
        if (state.global_step + 1) % args.logging_steps == 0:
            self.forbid("default")


def test_nothing_waits_for_the_device_between_log_steps(device: torch.device, tmp_path: Path) -> None:
    """Rows of many lengths, so that no step is the repetition of one before; AdamW and clipping as in any run."""
    modes: list[str] = []
    real = torch.cuda.set_sync_debug_mode if device.type == "cuda" else lambda mode: None

    def forbid(mode: str) -> None:
        modes.append(mode)
        real(mode)

    watched = Watched(forbid, after=10)
    made = trainer(
        tmp_path, DPO(), pairs(40), model=tiny_model(), callbacks=[watched], optim="adamw_torch", max_steps=25,
        logging_steps=5, use_cpu=device.type == "cpu", bf16=True, dataloader_pin_memory=True,
    )  # fmt: skip
    try:
        made.train()
    finally:
        real("default")
    assert watched.steps == [11, 12, 13, 14, 16, 17, 18, 19, 21, 22, 23, 24]
    # free again behind steps 4, 9, 14, ...: what is planned and done for the next one is logged
    assert modes == ["default"] * 2 + [*["error"] * 4, "default"] * 3
