"""Steps of one way of training one shape, in a process of its own: seconds, memory, and where the time goes.

``gpu.py`` starts it. Every way goes through its own ``train()``, which prepares the model with accelerate as any run
does. Time is read at the end of each step, when the device has finished, so that loading and planning are in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig
from profile_table import by_kind
from rows import Row, trie_nodes
from shapes import SHAPES, Shape
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer
from ways import common, tokenizer

from align.compat import training_config
from align.objectives import DPO
from align.trainers.preference import PreferenceTrainer

WAYS = ("ours", "trl", "trl_liger", "padded")
WARM_UP, MEASURED = 2, 4  # steps; the measured ones are of four different batches
PROFILED = "uf"  # the rows whose last step is profiled
PADDED_CHUNK = 4  # sequences of a padded micro-chunk


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def gib(size: int) -> float:
    return size / 2**30


class Clock(TrainerCallback):
    """Seconds of each measured step, the peak of memory over them, and a profile of one step more where asked for."""

    def __init__(self, *, profiled: bool) -> None:
        self.seconds: list[float] = []
        self.held = self.peak = 0
        self.kinds: dict[str, Any] | None = None
        self.profile = self._profile() if profiled else None
        self._last = 0.0

    @staticmethod
    def _profile() -> profile:
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        return profile(activities=kinds)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, end = state.global_step, now()
        if WARM_UP < step <= WARM_UP + MEASURED:
            self.seconds.append(end - self._last)
        if step == WARM_UP and torch.cuda.is_available():
            # gradients are gone by now: what is held are weights and the optimizer's state
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()
        if step == WARM_UP + MEASURED:
            self.peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            if self.profile is not None:
                self.profile.start()
        elif step > WARM_UP + MEASURED and self.profile is not None:
            self.profile.stop()
            self.kinds = by_kind(self.profile.key_averages())
        self._last = now()


class PaddedRows(TrainerCallback):
    """Switches our engine to padded rows, after the start-up probe of the first step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.engine.mode, self.trainer.engine.rows_per_chunk = "padded", PADDED_CHUNK


def arguments(shape: Shape, folder: str, rows: str, steps: int) -> dict[str, Any]:
    """What all ways are given. bf16 autocast everywhere, on a CPU too."""
    changes = {"bf16": True, "gradient_checkpointing": shape.checkpointing, "logging_strategy": "no"}
    return common(folder) | changes | {"per_device_train_batch_size": shape.batches[rows], "max_steps": steps}


def adapter(shape: Shape) -> LoraConfig | None:
    if not shape.lora:
        return None
    return LoraConfig(r=shape.lora, lora_alpha=2 * shape.lora, target_modules="all-linear", task_type="CAUSAL_LM")


def our_trainer(shape: Shape, values: dict[str, Any], table: Dataset) -> Any:
    return PreferenceTrainer(
        shape.model(device()),
        DPO(),
        training_config(**values),
        train_dataset=table,
        processing_class=tokenizer(),
        peft_config=adapter(shape),
        order=lambda epoch: list(range(len(table))),
        max_length=None,
    )


def trl_trainer(shape: Shape, values: dict[str, Any], table: Dataset, *, liger: bool) -> Any:
    """TRL's trainer; it tokenises what it is given, so that prepared rows are put in afterwards."""
    config = DPOConfig(max_length=None, train_sampling_strategy="sequential", use_liger_kernel=liger, **values)
    trainer = DPOTrainer(
        model=shape.model(device()),
        ref_model=None if shape.lora else shape.model(device()),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tokenizer(),
        peft_config=adapter(shape),
    )
    trainer.train_dataset = table
    return trainer


def measure(shape: Shape, way: str, rows: str, batches: list[list[Row]], rate: float) -> dict[str, Any]:
    """All figures of a way on one kind of rows."""
    profiled = rows == PROFILED
    clock = Clock(profiled=profiled)
    steps = WARM_UP + MEASURED + profiled
    plan = [batches[step % len(batches)] for step in range(steps)]
    table = Dataset.from_list([row for batch in plan for row in batch])
    with tempfile.TemporaryDirectory() as folder:
        values = arguments(shape, folder, rows, steps)
        if way.startswith("trl"):
            trainer = trl_trainer(shape, values, table, liger=way == "trl_liger")
        else:
            trainer = our_trainer(shape, values, table)
        if way == "padded":
            trainer.add_callback(PaddedRows(trainer))
        trainer.add_callback(clock)
        loss = trainer.train().training_loss
    measured = plan[WARM_UP : WARM_UP + MEASURED]
    operations = [shape.step_operations(batch) for batch in measured]
    seconds = statistics.median(clock.seconds)
    memory = {"held_gib": gib(clock.held), "peak_gib": gib(clock.peak), "above_gib": gib(clock.peak - clock.held)}
    return {
        "pairs": shape.batches[rows],
        "seconds": {"median": seconds, "min": min(clock.seconds), "max": max(clock.seconds)},
        "pairs_per_second": sum(map(len, measured)) / sum(clock.seconds),
        "mfu": statistics.median(n / s for n, s in zip(operations, clock.seconds, strict=True)) / rate,
        "unique_tokens": sum(map(trie_nodes, measured)) / MEASURED,
        "loss": loss,
        "mode": trainer.engine.mode if hasattr(trainer, "engine") else None,
        **(memory if torch.cuda.is_available() else {}),
        **({"kinds": clock.kinds} if clock.kinds else {}),
    }


def without(way: str) -> str | None:
    """Why a way cannot be measured here, or None."""
    if way != "trl_liger":
        return None
    if find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    return None if torch.cuda.is_available() else "Liger's kernels need a GPU"


def attempt(shape: Shape, way: str, rows: str, batches: list[list[Row]], rate: float) -> dict[str, Any]:
    """``measure``, or the sentence of an out-of-memory error in its place."""
    if reason := without(way):
        return {"skipped": reason}
    try:
        return measure(shape, way, rows, batches, rate)
    except torch.OutOfMemoryError as error:
        sentence = str(error).split(". ")[0]
    # behind the except block, whose traceback holds the tensors
    gc.collect()
    torch.cuda.empty_cache()
    return {"out_of_memory": sentence}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="JSON: batches by kind of rows")
    parser.add_argument("--rate", type=float, required=True, help="operations a second that count as all, for MFU")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures, written anew for each kind")
    args = parser.parse_args(argv)
    found: dict[str, Any] = {}
    for rows, batches in json.loads(args.rows.read_text()).items():
        found[rows] = attempt(SHAPES[args.shape], args.way, rows, batches, args.rate)
        gc.collect()
        args.out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
