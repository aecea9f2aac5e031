"""Weighted gradient ascent: tokens that the model is still sure of count most (arXiv 2502.19301)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Term, Terms, branch_metrics

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class WGA(Objective):
    """Gradient ascent with each token's log-prob weighted by its own probability, which takes no gradient."""

    title: ClassVar = "Weighted gradient ascent"
    paper: ClassVar = "arXiv 2502.19301; the form of its authors' code"
    equation: ClassVar = "p_t = pi(y_t|x, y_<t);  loss = sum_t stop(p_t^beta) log p_t / all forget tokens of the step"
    when: ClassVar = (
        "When gradient ascent is wanted without its divergence: tokens already forgotten stop pulling. At beta 1 its "
        "gradient is that of the mean token probability, the direction in which flat forgets."
    )

    pulls: ClassVar = "lowers token t of forget by p_t^beta / mean(T_f)"

    beta: Annotated[float, Field(ge=0, description="power of the probability; 0 is gradient ascent")] = 1.0

    @property
    def branches(self) -> tuple[str, ...]:
        return ("forget",)

    @property
    def units(self) -> tuple[str, ...]:
        return ("tokens:forget",)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        logp = policy.tokens["logp"]
        weight = (self.beta * logp.detach()).exp()
        losses = policy.total("forget", weight * logp)
        metrics = branch_metrics(policy, "forget")
        metrics["weight/forget"] = (policy.total("forget", weight).sum(), metrics["p/forget"][1])
        return Terms((Term(losses, "tokens:forget"),), metrics)
