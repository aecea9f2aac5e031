"""How long a run takes: its operations over the rate that this machine showed in earlier runs, else over its chip's.

Rates of runs are kept in a file of the cache, a line each, beside the store of reference log-probs.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from align.compat import checkpoints_layers
from align.runs.files import cache_folder

if TYPE_CHECKING:
    from align.plan.batches import Batches
    from align.plan.device import Device
    from align.plan.memory import Memory
    from align.plan.shares import Launch
    from align.recipe import Recipe

FILE = "speeds.jsonl"
# share of a chip's rate that runs reach: early runs on an H200 (2026-11-26) came to 0.37 with all weights and 0.54 with
# LoRA, over the matrix rate that was measured, 0.8 of the maker's
_REACHED = {"full": 0.30, "lora": 0.43}
_REACHED_ON_CPU = 0.5  # of a matrix product that is measured here
_REMEMBERED = 20  # of the last runs
_MOST_BYTES = 2**20  # of the file that is read
_MEASURED_SECONDS = 0.1


@dataclass(frozen=True)
class Time:
    """Seconds, and where they are from.

    Attributes:
        tokens: that policy, reference and evaluations compute, by which.
        seconds: of training with its evaluations; loading, samples and saving are not in it.
        source: a sentence.
    """

    tokens: Mapping[str, int]
    seconds: float
    flops: float
    source: str

    def to_json(self) -> dict[str, Any]:
        return {"tokens": dict(self.tokens), "seconds": round(self.seconds, 1), "source": self.source}


def time_of(recipe: Recipe, args: Any, batches: Batches, memory: Memory, launch: Launch, device: Device) -> Time:
    """How long the steps of a run and its evaluations take."""
    evaluations = _evaluations(args, batches)
    tokens = {"policy": batches.positions}
    if memory.computes_reference:
        again = batches.steps * batches.examples / batches.rows if batches.rows else 1
        once = recipe.reference.store and not memory.compares_whole
        tokens["reference"] = int(batches.positions / (max(1.0, again) if once else 1))
    if evaluations:
        tokens["evaluations"] = evaluations * batches.evaluated
    weights = memory.weights
    each = weights.sum("elements") - weights.embedding.elements * (not weights.tied) - weights.idle
    lora = recipe.model.lora is not None
    policy = (4 if lora else 6) + 2 * checkpoints_layers(args)
    flops = float(each * (policy * tokens["policy"] + 2 * (tokens.get("reference", 0) + tokens.get("evaluations", 0))))
    before = seen(device.name, shape_of(memory, lora, launch))
    alone = seen(device.name, shape_of(memory, lora)) if not before else []
    # a rate is one process's; those of a CPU share its cores, and together are no faster than one that has them all
    together = launch.processes if before or device.kind != "cpu" else 1
    if before or alone:
        rate = statistics.median(before or alone)
        source = f"the rate of {_runs(len(before or alone))} of this shape on this machine"
        source += ", in one process; what processes send each other is not counted" if alone else ""
    elif device.flops is not None:
        share = _REACHED["lora" if lora else "full"]
        rate = share * device.flops
        chip = (
            f"what its maker says of {device.name}" if device.known else "an A100's rate, since the chip is not known"
        )
        source = f"{share:.0%} of {chip}; no run of this shape was seen here"
    else:
        rate = _REACHED_ON_CPU * product_rate()
        source = f"{_REACHED_ON_CPU:.0%} of a matrix product measured now; no run of this shape was seen here"
    return Time(tokens, flops / rate / together, flops, source)


def _evaluations(args: Any, batches: Batches) -> int:
    """How often held-out rows are scored, at the end once more."""
    if batches.held_out is None:
        return 0
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "epoch":
        return batches.epochs + 1
    every = args.eval_steps * batches.steps if args.eval_steps < 1 else args.eval_steps
    return int(batches.steps / max(every, 1)) + 1


def shape_of(memory: Memory, lora: bool, launch: Launch | None = None) -> str:
    """What makes runs alike in speed: weights, whether an adapter is trained, processes (one by default), wrapper."""
    processes = ""
    if launch is not None and launch.processes > 1:
        processes = f", {launch.processes} processes under {launch.kind}"
    return f"{memory.weights.sum('elements')} weights{', adapter' if lora else ''}{processes}"


def _runs(count: int) -> str:
    return "an earlier run" if count == 1 else f"{count} earlier runs"


def product_rate() -> float:
    """Operations a second of a float32 matrix product on this CPU, the best of a tenth of a second."""
    a = torch.ones(512, 512)
    best, end = 0.0, time.perf_counter() + _MEASURED_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * 512**3 / (time.perf_counter() - start))
    return best


def remember(device: str, shape: str, rate: float) -> None:
    """Keep the rate of a run that has ended, in operations a second of one process; without a cache it is not kept."""
    line = json.dumps({"device": device, "shape": shape, "rate": rate})
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / FILE, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError:
        pass


def seen(device: str, shape: str) -> list[float]:
    """Rates of the last runs of a shape on a device; lines that are damaged are passed over."""
    file = cache_folder() / FILE
    try:
        with open(file, "rb") as lines:
            lines.seek(max(0, os.path.getsize(file) - _MOST_BYTES))
            found = lines.read().splitlines()
    except OSError:
        return []
    rates = []
    for line in found:
        try:
            one = json.loads(line)
            same = (one["device"], one["shape"]) == (device, shape)
            rate = float(one["rate"])
        except (ValueError, KeyError, TypeError):
            continue
        if same and 0 < rate < float("inf"):
            rates.append(rate)
    return rates[-_REMEMBERED:]
