"""The table of objectives: recipe name to class. Adding one is a file and a line here (see CONTRIBUTING.md)."""

from __future__ import annotations

from align.objectives.base import Objective, Term, Terms, WeightedSum
from align.objectives.dpo import DPO
from align.objectives.flat import FLAT
from align.objectives.flex_dpo import FlexDPO
from align.objectives.grad_ascent import GradAscent
from align.objectives.hinge import Hinge
from align.objectives.hypo import HyPO
from align.objectives.idk import IDK
from align.objectives.idk_dpo import IdkDPO
from align.objectives.inpo import INPO
from align.objectives.ipo import IPO
from align.objectives.kl import KL
from align.objectives.kto import KTO
from align.objectives.nll import NLL
from align.objectives.npo import NPO
from align.objectives.rmu import RMU
from align.objectives.rpo import RPO
from align.objectives.sampled_kl import SampledKL
from align.objectives.simnpo import SimNPO
from align.objectives.simpo import SimPO
from align.objectives.sppo import SPPO
from align.objectives.superhf import SuperHF
from align.objectives.wga import WGA

OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": DPO,
    "flat": FLAT,
    "flex_dpo": FlexDPO,
    "grad_ascent": GradAscent,
    "hinge": Hinge,
    "hypo": HyPO,
    "idk": IDK,
    "idk_dpo": IdkDPO,
    "inpo": INPO,
    "ipo": IPO,
    "kl": KL,
    "kto": KTO,
    "nll": NLL,
    "npo": NPO,
    "rmu": RMU,
    "rpo": RPO,
    "sampled_kl": SampledKL,
    "simnpo": SimNPO,
    "simpo": SimPO,
    "sppo": SPPO,
    "superhf": SuperHF,
    "wga": WGA,
}

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
    "OBJECTIVES",
    "RMU",
    "RPO",
    "SPPO",
    "WGA",
    "FlexDPO",
    "GradAscent",
    "Hinge",
    "HyPO",
    "IdkDPO",
    "Objective",
    "SampledKL",
    "SimNPO",
    "SimPO",
    "SuperHF",
    "Term",
    "Terms",
    "WeightedSum",
]
