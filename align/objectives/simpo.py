"""Simple Preference Optimization (arXiv 2405.14734, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Term, Terms, pair_metrics
from align.objectives.pairwise import Pairwise

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class SimPO(Pairwise):
    """Reference-free logistic loss on length-normalised log-probs with a target margin."""

    title: ClassVar = "Simple Preference Optimization"
    paper: ClassVar = "arXiv 2405.14734, eq. 6"
    equation: ClassVar = "m = beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - gamma;  loss = -log sigmoid(m)"
    when: ClassVar = (
        "When no reference is wanted and answers differ much in length. Nothing keeps it near the start, so it needs "
        "small learning rates (authors: 3e-7 to 1e-6) and tuned beta and gamma."
    )

    margin: ClassVar = "beta * (l_w / T_w - l_l / T_l) - gamma"
    pulls: ClassVar = ("beta * s / T_w", "beta * s / T_l")

    beta: Annotated[float, Field(gt=0, description="scale of the mean log-prob; authors use 2 to 10")] = 2.0
    gamma: Annotated[float, Field(ge=0, description="target margin; authors use 0.3 to 0.5 of beta")] = 1.0

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        from torch.nn.functional import logsigmoid

        chosen = self.beta * policy.mean("chosen")
        rejected = self.beta * policy.mean("rejected")
        return Terms((Term(-logsigmoid(chosen - rejected - self.gamma)),), pair_metrics(chosen, rejected, policy))
