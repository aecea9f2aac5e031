"""What a run writes down at its start, so that it can be repeated and resumed."""

from __future__ import annotations

import platform
from typing import Any

import torch

from align.data.tokens.arguments import kept_arguments
from align.recipe import Recipe
from align.report.record import kind_of
from align.versions import TESTED, installed


def lock(recipe: Recipe, trainer: Any, data_digest: str | None) -> dict[str, Any]:
    """Content of the lock file of one training."""
    device = trainer.args.device
    mixed = trainer.accelerator.mixed_precision != "no"
    samples = (
        {} if recipe.sampling is None else {"samples": repeatable(recipe, on_cpu=device.type == "cpu", mixed=mixed)}
    )
    return {
        "kind": kind_of(trainer.objective, forgets=bool(recipe.data.forget)),
        "recipe": recipe.dump(),
        "base": str(recipe.base),  # where its relative paths start
        "template_arguments": kept_arguments(trainer.processing_class),  # rendered again on resume and in evaluation
        "data": data_digest,
        "reference": trainer.digest,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in TESTED}},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": trainer.accelerator.num_processes,
        "distributed": str(trainer.accelerator.distributed_type.value),
        **samples,  # how far another run draws the same
    }


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
