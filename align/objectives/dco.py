"""Direct coverage optimization: likelihood that stops where n tries would succeed anyway (arXiv 2502.07154)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Terms
from align.objectives.nll import norm_unit, normalised
from align.objectives.stable import log1mexp

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class DCO(Objective):
    """Minus the log-probability that at least one of n samples is the answer.

    Its gradient is cross-entropy's times F = n p (1 - p)^(n - 1) / (1 - (1 - p)^n), between 0 and 1. The authors' code
    multiplies with F as a constant and drops rows of small F; here the loss itself is differentiated, no row dropped.
    """

    title: ClassVar = "Direct Coverage Optimization"
    paper: ClassVar = "arXiv 2502.07154; the gradient is the authors' code's, the closed form from a note on it"
    equation: ClassVar = "p = pi(y|x), the whole answer's;  loss = -log(1 - (1 - p)^n);  n = 1: -log p"
    when: ClassVar = (
        "As the likelihood term for short answers that will be sampled n times: it leaves alone what is likely enough. "
        "Beyond a few tokens p is about 0, and then it is cross-entropy exactly, less log n."
    )

    pulls: ClassVar = "raises the answer by n p (1 - p)^(n - 1) / (1 - (1 - p)^n)"

    branch: Annotated[str, Field(pattern="^[a-z_]+$", description="the branch that is imitated")] = "chosen"
    n: Annotated[float, Field(ge=1, description="samples of which one must be right; 1 is nll with norm: sum")] = 8.0

    @property
    def branches(self) -> tuple[str, ...]:
        return (self.branch,)

    @property
    def units(self) -> tuple[str, ...]:
        return (norm_unit("sum", self.branch),)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        import torch

        logp, log_n = policy.sum(self.branch), math.log(self.n)
        unlikely = logp + log_n < -20  # 1 - (1 - p)^n is n p to the last digit of float32
        inner = torch.where(unlikely, -1.0, logp)
        fail = log1mexp(inner)
        success = log1mexp(self.n * fail)
        losses = torch.where(unlikely, -logp - log_n, -success)
        factor = torch.where(unlikely, 1.0, (log_n + inner + (self.n - 1) * fail - success).exp()).detach()
        metrics = {
            f"nll/{self.branch}": (-logp.detach().sum(), policy.count(self.branch).sum()),
            f"dco/factor/{self.branch}": (factor.sum(), factor.new_full((), float(factor.numel()))),
        }
        return Terms((normalised(losses, policy, self.branch, "sum"),), metrics)
