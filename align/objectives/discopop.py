"""DiscoPOP: a loss that a language model found, logistic here and exponential there (arXiv 2406.08414)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Diverging

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class DiscoPOP(Diverging):
    """A mix of the logistic and the exponential loss of the margin, by a gate on the margin itself."""

    title: ClassVar = "Discovered Preference Optimization"
    paper: ClassVar = "arXiv 2406.08414, eq. 5 (log-ratio modulated loss), as TRL's discopop"
    equation: ClassVar = (
        "m = beta (d_w - d_l), d = log pi(y|x) - log pi_ref(y|x), a = sigmoid(m / discopop_tau);  "
        "loss = -(1 - a) log sigmoid(m) + a exp(-m)"
    )
    when: ClassVar = (
        "As one more candidate beside dpo: its authors found it by search and report gains on chat and summaries. It "
        "is not convex: at tau 0.05 margins from -0.12 to 0.07 are pushed down, and all pairs start at 0."
    )

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = (
        "beta * (sigmoid(-m / discopop_tau) * s + sigmoid(m / discopop_tau) * exp(-m) + sigmoid(m / discopop_tau) "
        "* sigmoid(-m / discopop_tau) / discopop_tau * (log(1 + exp(-m)) - exp(-m)))",
    ) * 2

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1
    discopop_tau: Annotated[
        float, Field(gt=0, le=1, description="width of the gate; beyond 1 the exponential part would have no bound")
    ] = 0.05

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch.nn.functional import logsigmoid

        margin = self.beta * chosen - self.beta * rejected
        gate = margin / self.discopop_tau
        # a exp(-m) as one exponential, which stays below 1 however negative m is
        return -(-gate).sigmoid() * logsigmoid(margin) + (logsigmoid(gate) - margin).exp()
