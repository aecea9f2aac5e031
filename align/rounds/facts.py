"""What a run in rounds writes down of itself; each round's training has a lock file and facts of its own."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from datasets import Dataset

from align.recipe import Recipe
from align.report.record import RunRecord
from align.rounds.prompts import digest
from align.runs.directory import RunDirectory
from align.runs.memory import peak
from align.runs.processes import World
from align.training.facts import begin
from align.training.lock import new_id, repeatable
from align.versions import TESTED, installed


def begin_rounds(
    recipe: Recipe,
    directory: RunDirectory,
    world: World,
    step_examples: int,
    prompts: Path,
    arguments: Mapping[str, Any],
    said: Sequence[str],
) -> None:
    """Write the lock file and ``facts.json``.

    Args:
        step_examples: of an optimizer step, all processes together.
        prompts: the file of all rounds' prompts.
        arguments: template arguments of the run.
        said: what became of the rows.
    """
    device = world.device
    directory.write_lock(
        {
            "run": new_id(),
            "recipe": recipe.dump(),
            "base": str(recipe.base),
            "directory": str(directory.path.resolve()),
            "template_arguments": dict(arguments),
            "data": digest(prompts),
            "versions": {"python": platform.python_version(), **{name: installed(name) for name in TESTED}},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "examples_per_step": step_examples,
            "processes": world.size,
            "samples": repeatable(recipe, on_cpu=device.type == "cpu", mixed=world.mixed is not None),
        }
    )
    forwards = "as the weights" if world.mixed is None else str(world.mixed).removeprefix("torch.")
    begin(
        recipe,
        directory,
        said=said,
        sets={"prompts": Dataset(pyarrow.parquet.read_table(prompts))},
        precision=f"weights {recipe.model.dtype}, forwards {forwards}",
        asks_date=True,  # whether it does is not known before a tokenizer is loaded
    )


def cost(run: RunRecord, world: World, seconds: float) -> dict[str, Any]:
    """What the rounds cost; ``seconds`` since the start of this process, tokens of all trainings."""
    trained = [(one.facts.get("cost") or {}).get("tokens", 0) for one in run.rounds]
    memory = {"peak_memory_bytes": peak(world.device), "peak_memory_of": str(world.device)}
    return {"seconds": round(seconds, 1), "steps": run.steps, "trained_tokens": sum(trained), **memory}
