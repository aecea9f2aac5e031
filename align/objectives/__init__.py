"""All objectives, which a recipe calls by the names of their files. Adding one is a file and a line here."""

from __future__ import annotations

from align.objectives.aot import AOT as AOT
from align.objectives.aot_unpaired import AOTUnpaired as AOTUnpaired
from align.objectives.apo_down import APODown as APODown
from align.objectives.apo_zero import APOZero as APOZero
from align.objectives.base import Objective as Objective
from align.objectives.base import Term as Term
from align.objectives.base import Terms as Terms
from align.objectives.base import WeightedSum as WeightedSum
from align.objectives.bco_pair import BCOPair as BCOPair
from align.objectives.bradley_terry import BradleyTerry as BradleyTerry
from align.objectives.cpo import CPO as CPO
from align.objectives.dco import DCO as DCO
from align.objectives.discopop import DiscoPOP as DiscoPOP
from align.objectives.dpo import DPO as DPO
from align.objectives.exo_pair import EXOPair as EXOPair
from align.objectives.flat import FLAT as FLAT
from align.objectives.flex_dpo import FlexDPO as FlexDPO
from align.objectives.grad_ascent import GradAscent as GradAscent
from align.objectives.hinge import Hinge as Hinge
from align.objectives.hypo import HyPO as HyPO
from align.objectives.idk import IDK as IDK
from align.objectives.idk_dpo import IdkDPO as IdkDPO
from align.objectives.inpo import INPO as INPO
from align.objectives.ipo import IPO as IPO
from align.objectives.kl import KL as KL
from align.objectives.kto import KTO as KTO
from align.objectives.kto_forget import KTOForget as KTOForget
from align.objectives.logic import Logic as Logic
from align.objectives.nca_pair import NCAPair as NCAPair
from align.objectives.nll import NLL as NLL
from align.objectives.npo import NPO as NPO
from align.objectives.orpo import ORPO as ORPO
from align.objectives.rmu import RMU as RMU
from align.objectives.robust import Robust as Robust
from align.objectives.rpo import RPO as RPO
from align.objectives.sampled_kl import SampledKL as SampledKL
from align.objectives.sigmoid_norm import SigmoidNorm as SigmoidNorm
from align.objectives.simnpo import SimNPO as SimNPO
from align.objectives.simpo import SimPO as SimPO
from align.objectives.sppo_hard import SPPOHard as SPPOHard
from align.objectives.superhf import SuperHF as SuperHF
from align.objectives.wga import WGA as WGA

OBJECTIVES: dict[str, type[Objective]] = {
    kind.__module__.rpartition(".")[2]: kind
    for kind in list(vars().values())
    if isinstance(kind, type) and issubclass(kind, Objective) and kind not in (Objective, WeightedSum)
}


def name_of(kind: type[Objective]) -> str:
    """What a recipe calls a kind of objective: its name in the table, or ``module:Class`` where it has none."""
    named = (name for name, known in OBJECTIVES.items() if known is kind)
    return next(named, f"{kind.__module__}:{kind.__qualname__}")
