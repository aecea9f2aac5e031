"""The table of objectives: recipe name to class. Adding one is a file and a line here (see CONTRIBUTING.md)."""

from __future__ import annotations

from align.objectives.base import Objective, Term, Terms, WeightedSum
from align.objectives.dpo import DPO
from align.objectives.flex_dpo import FlexDPO
from align.objectives.hinge import Hinge
from align.objectives.ipo import IPO
from align.objectives.kl import KL
from align.objectives.nll import NLL
from align.objectives.rpo import RPO
from align.objectives.simpo import SimPO

OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": DPO,
    "flex_dpo": FlexDPO,
    "hinge": Hinge,
    "ipo": IPO,
    "kl": KL,
    "nll": NLL,
    "rpo": RPO,
    "simpo": SimPO,
}

__all__ = [
    "DPO",
    "IPO",
    "KL",
    "NLL",
    "OBJECTIVES",
    "RPO",
    "FlexDPO",
    "Hinge",
    "Objective",
    "SimPO",
    "Term",
    "Terms",
    "WeightedSum",
]
