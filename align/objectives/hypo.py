"""HyPO: DPO on offline pairs with the reverse KL on fresh samples (arXiv 2406.01462)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Terms, WeightedSum
from align.objectives.dpo import DPO
from align.objectives.pairwise import Pairwise
from align.objectives.sampled_kl import Baseline, Clip, Estimator, SampledKL

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class HyPO(Pairwise):
    """``dpo`` plus ``kl_weight`` times ``sampled_kl``; with ``kl_weight`` 0 it is ``dpo`` and nothing is sampled."""

    title: ClassVar = "Hybrid Preference Optimization"
    paper: ClassVar = "arXiv 2406.01462, its idea; the estimator is derived here and the defaults are not the paper's"
    equation: ClassVar = (
        "loss = DPO(beta, label_smoothing) on pairs + kl_weight KL(pi || pi_ref) on samples of the policy (sampled_kl)"
    )
    when: ClassVar = (
        "When DPO on offline pairs drifts: it is only held near the reference on the pairs' answers, this one also on "
        "the answers that it would give itself. Costs sampling at every step."
    )

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = ("beta * (s - label_smoothing)", "beta * (s - label_smoothing)")  # samples apart

    beta: Annotated[float, Field(gt=0, description="DPO's: larger stays closer to the reference on the pairs")] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, description="assumed share of flipped labels")] = 0.0
    kl_weight: Annotated[
        float, Field(ge=0, description="times the reverse KL in nats of whole answers; 1e-4 is no verified value")
    ] = 1e-4
    estimator: Estimator = "reward_to_go"
    baseline: Baseline = "none"
    clip: Clip = None

    def __post_init__(self) -> None:
        _ = self.kl  # its fields must fit together

    @property
    def kl(self) -> SampledKL:
        """The term on samples."""
        return SampledKL(self.estimator, self.baseline, self.clip)

    @property
    def total(self) -> WeightedSum:
        """The sum that this objective is short for."""
        dpo = (DPO(self.beta, self.label_smoothing), 1.0)
        return WeightedSum((dpo, (self.kl, self.kl_weight)) if self.kl_weight else (dpo,))

    @property
    def branches(self) -> tuple[str, ...]:
        return self.total.branches

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def units(self) -> tuple[str, ...]:
        return self.total.units

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        return self.total(policy, reference)
