"""align: preference alignment and unlearning for language models, with one trainer for both.

Importing this package imports neither torch nor transformers; the names below load what they need when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from align.objectives import (
        DPO,
        FLAT,
        IDK,
        IPO,
        KL,
        KTO,
        NLL,
        NPO,
        RMU,
        RPO,
        WGA,
        FlexDPO,
        GradAscent,
        Hinge,
        IdkDPO,
        SimNPO,
        SimPO,
        WeightedSum,
    )
    from align.trainers.preference import PreferenceTrainer
    from align.trainers.unlearn import UnlearnTrainer

__all__ = [
    "DPO",
    "FLAT",
    "IDK",
    "IPO",
    "KL",
    "KTO",
    "NLL",
    "NPO",
    "RMU",
    "RPO",
    "WGA",
    "FlexDPO",
    "GradAscent",
    "Hinge",
    "IdkDPO",
    "PreferenceTrainer",
    "SimNPO",
    "SimPO",
    "UnlearnTrainer",
    "WeightedSum",
    "__version__",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name == "PreferenceTrainer":
        from align.trainers.preference import PreferenceTrainer

        return PreferenceTrainer
    if name == "UnlearnTrainer":
        from align.trainers.unlearn import UnlearnTrainer

        return UnlearnTrainer
    if name in __all__:
        from align import objectives

        return getattr(objectives, name)
    raise AttributeError(f"module 'align' has no attribute {name!r}")
