"""The table of objectives: recipe name to class. Adding one is a file and a line here (see CONTRIBUTING.md)."""

from __future__ import annotations

from align.objectives.base import Objective, Term, Terms, WeightedSum
from align.objectives.dpo import DPO
from align.objectives.flat import FLAT
from align.objectives.flex_dpo import FlexDPO
from align.objectives.grad_ascent import GradAscent
from align.objectives.hinge import Hinge
from align.objectives.idk import IDK
from align.objectives.idk_dpo import IdkDPO
from align.objectives.ipo import IPO
from align.objectives.kl import KL
from align.objectives.kto import KTO
from align.objectives.nll import NLL
from align.objectives.npo import NPO
from align.objectives.rmu import RMU
from align.objectives.rpo import RPO
from align.objectives.simnpo import SimNPO
from align.objectives.simpo import SimPO
from align.objectives.wga import WGA

OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": DPO,
    "flat": FLAT,
    "flex_dpo": FlexDPO,
    "grad_ascent": GradAscent,
    "hinge": Hinge,
    "idk": IDK,
    "idk_dpo": IdkDPO,
    "ipo": IPO,
    "kl": KL,
    "kto": KTO,
    "nll": NLL,
    "npo": NPO,
    "rmu": RMU,
    "rpo": RPO,
    "simnpo": SimNPO,
    "simpo": SimPO,
    "wga": WGA,
}

__all__ = [
    "DPO",
    "FLAT",
    "IDK",
    "IPO",
    "KL",
    "KTO",
    "NLL",
    "NPO",
    "OBJECTIVES",
    "RMU",
    "RPO",
    "WGA",
    "FlexDPO",
    "GradAscent",
    "Hinge",
    "IdkDPO",
    "Objective",
    "SimNPO",
    "SimPO",
    "Term",
    "Terms",
    "WeightedSum",
]
