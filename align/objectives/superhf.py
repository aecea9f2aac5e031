"""SuperHF: imitation of the best samples under a KL prior (arXiv 2310.16763)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Terms, WeightedSum
from align.objectives.kl import KL
from align.objectives.nll import NLL

if TYPE_CHECKING:
    from align.engine.reads import AnyRead
    from align.engine.scores import Scores

BRANCH = "survivor"


@dataclass(frozen=True)
class SuperHF(Objective):
    """Likelihood of the samples that a judge kept, and the forward KL to the reference at their tokens.

    The KL is averaged over each survivor's tokens. By default it is averaged over survivors, too, so that its weight
    does not depend on how many there are; the authors' code adds them up (``released``).
    """

    title: ClassVar = "Supervised Iterative Learning from Human Feedback"
    paper: ClassVar = "arXiv 2310.16763; the form of its authors' code, whose sum over samples is released: true"
    equation: ClassVar = (
        "-sum log pi(y|x) / all tokens of the survivors + kl_weight mean of K;  K = (1 / |y|) sum_t sum_v "
        "p_ref(v) log(p_ref(v) / p(v)) for a survivor y;  released: the sum of K over the step in place of its mean"
    )
    when: ClassVar = (
        "When there is a reward model and reinforcement learning is too much. Without the KL it soon gives one and the "
        "same answer to everything: watch the similarity of answers beside the reward."
    )

    pulls: ClassVar = "raises survivor by 1 / mean(T); its KL moves whole distributions"

    kl_weight: Annotated[float, Field(ge=0, description="times the forward KL per token; 0 needs no reference")] = 0.35
    released: Annotated[bool, Field(description="add the KL up over the step's survivors, as the authors' code")] = (
        False
    )

    @property
    def total(self) -> WeightedSum:
        """The sum that this objective is short for, with its KL averaged over survivors."""
        likelihood = (NLL(branch=BRANCH), 1.0)
        prior = (KL(branch=BRANCH, direction="forward", norm="seq_mean"), self.kl_weight)
        return WeightedSum((likelihood, prior) if self.kl_weight else (likelihood,))

    @property
    def branches(self) -> tuple[str, ...]:
        return (BRANCH,)

    @property
    def needs_reference(self) -> bool:
        return self.kl_weight > 0

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(self._unit(unit) for unit in self.total.units)

    def _unit(self, unit: str) -> str:
        return "step" if self.released and unit.startswith("sequences:") else unit

    def reads(self) -> tuple[AnyRead, ...]:
        return self.total.reads()

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        terms = self.total(policy, reference)
        return Terms(tuple(replace(term, unit=self._unit(term.unit)) for term in terms.losses), terms.metrics)
