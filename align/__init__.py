"""align: preference alignment and unlearning for language models, with one trainer for both.

Importing this package imports neither torch nor transformers; the names below load what they need when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from align.objectives import (
        DPO,
        FLAT,
        IDK,
        INPO,
        IPO,
        KL,
        KTO,
        NLL,
        NPO,
        RMU,
        RPO,
        SPPO,
        WGA,
        FlexDPO,
        GradAscent,
        Hinge,
        HyPO,
        IdkDPO,
        SampledKL,
        SimNPO,
        SimPO,
        SuperHF,
        WeightedSum,
    )
    from align.recipe.sampling import Judge, Rounds, Sampling, Select
    from align.rounds.inpo import INPOTrainer
    from align.rounds.trainer import RoundTrainer
    from align.trainers.hypo import HyPOTrainer
    from align.trainers.preference import PreferenceTrainer
    from align.trainers.superhf import SuperHFTrainer
    from align.trainers.unlearn import UnlearnTrainer

__all__ = [
    "DPO",
    "FLAT",
    "IDK",
    "INPO",
    "IPO",
    "KL",
    "KTO",
    "NLL",
    "NPO",
    "RMU",
    "RPO",
    "SPPO",
    "WGA",
    "FlexDPO",
    "GradAscent",
    "Hinge",
    "HyPO",
    "HyPOTrainer",
    "INPOTrainer",
    "IdkDPO",
    "Judge",
    "PreferenceTrainer",
    "RoundTrainer",
    "Rounds",
    "SampledKL",
    "Sampling",
    "Select",
    "SimNPO",
    "SimPO",
    "SuperHF",
    "SuperHFTrainer",
    "UnlearnTrainer",
    "WeightedSum",
    "__version__",
]


_TRAINERS = {
    "HyPOTrainer": "trainers.hypo",
    "INPOTrainer": "rounds.inpo",
    "PreferenceTrainer": "trainers.preference",
    "RoundTrainer": "rounds.trainer",
    "SuperHFTrainer": "trainers.superhf",
    "UnlearnTrainer": "trainers.unlearn",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in ("Judge", "Rounds", "Sampling", "Select"):
        return getattr(import_module("align.recipe.sampling"), name)
    if name in _TRAINERS:
        return getattr(import_module(f"align.{_TRAINERS[name]}"), name)
    if name in __all__:
        from align import objectives

        return getattr(objectives, name)
    raise AttributeError(f"module 'align' has no attribute {name!r}")
