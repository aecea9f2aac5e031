"""Simple Preference Optimization (arXiv 2405.14734, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Term, Terms, pair_metrics
from align.objectives.pairwise import Pairwise, logistic, powered

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class SimPO(Pairwise):
    """Reference-free logistic loss on length-normalised log-probs with a target margin.

    With ``alpha`` the reward is that of AlphaPO, (1 - p^-alpha) / alpha of the mean probability p per token.
    """

    title: ClassVar = "Simple Preference Optimization"
    paper: ClassVar = "arXiv 2405.14734, eq. 6; alpha: arXiv 2501.03884 (AlphaPO)"
    equation: ClassVar = (
        "x = log pi(y|x) / |y|;  m = beta (r_w - r_l) - gamma, r = x, or (1 - exp(-alpha x)) / alpha with alpha;  "
        "loss = -(1 - e) log sigmoid(m) - e log sigmoid(-m), e = label_smoothing"
    )
    when: ClassVar = (
        "When no reference is wanted and answers differ much in length. Nothing keeps it near the start, so it needs "
        "small learning rates (authors: 3e-7 to 1e-6) and tuned beta and gamma."
    )

    beta: Annotated[float, Field(gt=0, description="scale of the mean log-prob; authors use 2 to 10")] = 2.0
    gamma: Annotated[float, Field(ge=0, description="target margin; authors use 0.3 to 0.5 of beta")] = 1.0

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, description="assumed share of flipped labels")] = 0.0
    alpha: Annotated[
        float, Field(description="AlphaPO's; above 0 unlikely answers are pulled harder, below 0 less, 0 is SimPO")
    ] = 0.0

    @property
    def m(self) -> str:
        if not self.alpha:
            return "beta * (l_w / T_w - l_l / T_l) - gamma"
        return "beta * (exp(-alpha * l_l / T_l) - exp(-alpha * l_w / T_w)) / alpha - gamma"

    @property
    def pulls(self) -> tuple[str, str]:
        slopes = (f" * exp(-alpha * l_{i} / T_{i})" if self.alpha else "" for i in "wl")
        chosen, rejected = (f"beta * (s - label_smoothing){by} / T_{i}" for by, i in zip(slopes, "wl", strict=True))
        return chosen, rejected

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        chosen, rejected = (self.beta * powered(policy.mean(branch), -self.alpha) for branch in ("chosen", "rejected"))
        losses = logistic(chosen - rejected - self.gamma, self.label_smoothing)
        return Terms((Term(losses),), pair_metrics(chosen, rejected, policy))
