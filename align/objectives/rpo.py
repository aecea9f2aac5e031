"""Regularized Preference Optimization: DPO plus imitation of the chosen answer (arXiv 2405.16436)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from align.objectives.base import Term, Terms
from align.objectives.dpo import DPO
from align.objectives.nll import NLL
from align.objectives.pairwise import Pairwise

if TYPE_CHECKING:
    from align.engine.scores import Scores

# (beta, eta) of the authors' released runs.
_RELEASED = {"handbook": (0.01, 0.005), "openrlhf": (0.5, 0.2)}


@dataclass(frozen=True)
class RPO(Pairwise):
    """DPO plus a likelihood term in one of the authors' two released normalisations."""

    title: ClassVar = "Regularized Preference Optimization"
    paper: ClassVar = "arXiv 2405.16436, eq. 4.8; presets are the authors' two released implementations"
    equation: ClassVar = (
        "loss = DPO(beta) + SFT;  handbook: SFT = -eta beta log pi(y_w|x), summed over tokens;  "
        "openrlhf: SFT = -eta log pi(y_w|x) / |y_w|"
    )
    when: ClassVar = (
        "When the chosen answers are good enough to imitate. It keeps their likelihood from falling; on chosen answers "
        "of poor quality it teaches them."
    )

    m: ClassVar = "beta * (d_w - d_l)"

    preset: Annotated[
        Literal["handbook", "openrlhf"], Field(description="which released normalisation of the SFT term")
    ] = "openrlhf"
    beta: Annotated[float | None, Field(gt=0, description="DPO's beta; 0.01 for handbook, 0.5 for openrlhf")] = None
    eta: Annotated[float | None, Field(ge=0, description="weight of the SFT term; 0.005 or 0.2")] = None

    @property
    def pulls(self) -> tuple[str, str]:
        return ("beta * (s + eta)" if self.preset == "handbook" else "beta * s + eta / T_w", "beta * s")

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def scales(self) -> tuple[float, float]:
        """beta and eta, where none is given the released ones."""
        beta, eta = _RELEASED[self.preset]
        return beta if self.beta is None else self.beta, eta if self.eta is None else self.eta

    @property
    def margin_scale(self) -> float:
        return self.scales[0]

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        beta, eta = self.scales
        preference = DPO(beta=beta)(policy, reference)
        # handbook scales a token sum with beta, openrlhf a per-sequence mean without it: they agree at one length only
        handbook = self.preset == "handbook"
        imitation = NLL(branch="chosen", norm="sum" if handbook else "seq_mean")(policy, reference)
        # a pair has one chosen answer, so this divides as the likelihood term does
        sft = Term(imitation.losses[0].losses, weight=eta * beta if handbook else eta)
        return Terms((*preference.losses, sft), {**preference.metrics, **imitation.metrics})
