"""align: preference alignment and unlearning for language models, with one trainer for both.

Importing this package imports neither torch nor transformers; the names below load what they need when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from align.objectives import *  # noqa: F403
    from align.recipe.sampling import Judge as Judge
    from align.recipe.sampling import Rounds as Rounds
    from align.recipe.sampling import Sampling as Sampling
    from align.recipe.sampling import Select as Select
    from align.rounds.inpo import INPOTrainer as INPOTrainer
    from align.rounds.trainer import RoundTrainer as RoundTrainer
    from align.trainers.hypo import HyPOTrainer as HyPOTrainer
    from align.trainers.preference import PreferenceTrainer as PreferenceTrainer
    from align.trainers.reward import RewardModelTrainer as RewardModelTrainer
    from align.trainers.superhf import SuperHFTrainer as SuperHFTrainer
    from align.trainers.unlearn import UnlearnTrainer as UnlearnTrainer

_SETTINGS = ("Judge", "Rounds", "Sampling", "Select")
_TRAINERS = {
    "HyPOTrainer": "trainers.hypo",
    "INPOTrainer": "rounds.inpo",
    "PreferenceTrainer": "trainers.preference",
    "RewardModelTrainer": "trainers.reward",
    "RoundTrainer": "rounds.trainer",
    "SuperHFTrainer": "trainers.superhf",
    "UnlearnTrainer": "trainers.unlearn",
}


def __dir__() -> list[str]:
    from align.objectives import OBJECTIVES

    kinds = (kind.__name__ for kind in OBJECTIVES.values())
    return sorted({"__version__", *_SETTINGS, *_TRAINERS, "WeightedSum", *kinds})


def __getattr__(name: str) -> Any:
    if name in _SETTINGS:
        return getattr(import_module("align.recipe.sampling"), name)
    if name in _TRAINERS:
        return getattr(import_module(f"align.{_TRAINERS[name]}"), name)
    if name in __dir__():
        return getattr(import_module("align.objectives"), name)
    raise AttributeError(f"module 'align' has no attribute {name!r}")
