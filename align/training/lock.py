"""What a run writes down at its start, so that it can be repeated and resumed."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from align.data.tokens.arguments import kept_arguments
from align.recipe import Recipe
from align.report.record import kind_of
from align.versions import TESTED, installed

_SURROUNDINGS = ("device", "mixed_precision")


def new_id() -> str:
    """The id of a run, which its checkpoints carry."""
    return uuid4().hex


def lock(recipe: Recipe, trainer: Any, directory: Path, data_digest: str | None) -> dict[str, Any]:
    """Content of the lock file of one training in ``directory``."""
    device = trainer.args.device
    mixed = trainer.accelerator.mixed_precision
    samples = {}
    if recipe.sampling is not None:
        samples["samples"] = repeatable(recipe, on_cpu=device.type == "cpu", mixed=mixed != "no")
    return {
        "kind": kind_of(trainer.objective, forgets=bool(recipe.data.forget)),
        "run": new_id(),
        "recipe": recipe.dump(),
        "base": str(recipe.base),  # where its relative paths start
        "directory": str(directory.resolve()),  # it may be moved
        "template_arguments": kept_arguments(trainer.processing_class),  # rendered again on resume and in evaluation
        "data": data_digest,
        "reference": trainer.digest,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in TESTED}},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "mixed_precision": mixed,
        "examples_per_step": trainer.step_examples,
        "processes": trainer.accelerator.num_processes,
        "distributed": str(trainer.accelerator.distributed_type.value),
        **samples,  # how far another run draws the same
    }


def otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence where a run goes on with other packages, on another device or in another precision than it began."""
    known = [{**lock.get("versions", {}), **{name: lock.get(name) for name in _SURROUNDINGS}} for lock in (before, now)]
    changed = [
        f"{name.replace('_', ' ')} {known[1][name]} (it was {then})"
        for name, then in known[0].items()
        if then is not None and known[1].get(name) is not None and known[1][name] != then
    ]
    return [f"note: the run goes on with {', '.join(changed)}: results may differ by more than rounding"] * bool(
        changed
    )


def repeatable(recipe: Recipe, *, on_cpu: bool, mixed: bool) -> str:
    """How far another run of a recipe draws the same samples, for its lock file.

    ``mixed``: whether forwards compute in another type than the weights'.
    """
    assert recipe.sampling is not None
    model = recipe.model
    wide = model.dtype in ("auto", "float32")  # on a CPU auto is float32
    if recipe.sampling.server is not None:
        return "as far as the server repeats itself"
    if on_cpu and wide and not mixed:
        return "exactly: float32 on a CPU"
    if recipe.sampling.batch_size is None:
        return "not exactly: batches follow the memory that is free, until sampling.batch_size is a number"
    return f"for this shape of batches (sampling.batch_size {recipe.sampling.batch_size}, and the same processes)"
