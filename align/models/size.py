"""How large the model of a recipe is, and how much of it is trained, before its weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from align.errors import UserError
from align.models.load import usual_type
from align.models.look import put_on, structure
from align.models.policy import lora_config
from align.runs.placement import Size

if TYPE_CHECKING:
    from align.recipe import Recipe

_QUANTISED = {"4bit": 0.5, "8bit": 1.0}  # bytes of a weight
_ADAPTER = 4  # bytes: PEFT keeps its weights in float32


def training_size(recipe: Recipe) -> Size:
    """What training holds from step to step, by the model's structure; no weight is read.

    Raises:
        UserError: where the model cannot be looked at, or its architecture not be made without weights.
    """
    objective, section = recipe.objective_value(), recipe.model
    model = structure(section, recipe.base, objective.scores_answers)
    if model is None:
        raise UserError(f"model.id: {section.id} does not tell its size without its weights: choose with --on.")
    width = _width(recipe, model)
    own = sum(p.numel() for p in model.parameters())
    if section.lora is None:
        named = section.train_only
        chosen = [p.numel() for n, p in model.named_parameters() if named is None or any(part in n for part in named)]
        weights, trained = width * own, width * sum(chosen)
    else:
        config = lora_config(section.lora, reward=objective.scores_answers)
        added = 0 if config is None else sum(p.numel() for p in put_on(model, config).parameters() if p.requires_grad)
        weights, trained = width * own + _ADAPTER * added, _ADAPTER * added
    # rounds read the reference's log-probs from the rows, and under an adapter the reference is the model without it
    copied = objective.needs_reference and section.lora is None and recipe.reference.rows is None and not recipe.rounds
    return Size(int(weights), int(trained), int(width * own) * copied, divisible=section.load_in is None)


def _width(recipe: Recipe, model: torch.nn.Module) -> float:
    """Bytes that one weight takes in memory."""
    section = recipe.model
    if section.load_in is not None:
        return _QUANTISED[section.load_in]
    name = section.dtype
    if name == "auto":
        name = "float32" if section.lora is None else usual_type()
    dtype = getattr(model.config, "dtype", None) if name == "auto" else getattr(torch, name)
    return (dtype or torch.float32).itemsize
