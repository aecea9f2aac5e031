"""SimNPO: reference-free, length-normalised negative preference optimization (arXiv 2410.07163)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Term, Terms, branch_metrics

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class SimNPO(Objective):
    """NPO on the mean log-prob of a token, with a margin in place of the reference."""

    title: ClassVar = "Simple Negative Preference Optimization"
    paper: ClassVar = "arXiv 2410.07163; the form of its authors' code"
    equation: ClassVar = "l = log pi(y_f|x) / |y_f|;  loss = -(2 / beta) log sigmoid(-beta (l + delta))"
    when: ClassVar = (
        "When no reference is wanted, or forget answers differ much in length. Its authors weight it with 0.125 beside "
        "nll on retain with weight 1 (TOFU forget10; forget05: beta 2.5, weight 0.1375)."
    )

    m: ClassVar = "-beta * (l_f / T_f + delta)"
    pulls: ClassVar = ("0", "2 * s / T_f")

    beta: Annotated[float, Field(gt=0, description="scale of the mean log-prob; authors use 2.5 to 4.5")] = 4.5
    delta: Annotated[float, Field(ge=0, description="margin, in nats per token")] = 0.0

    @property
    def branches(self) -> tuple[str, ...]:
        return ("forget",)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        from torch.nn.functional import logsigmoid

        scaled = self.beta * (policy.mean("forget") + self.delta)
        metrics = branch_metrics(policy, "forget")
        weight = 2 * scaled.detach().sigmoid()
        metrics["weight/forget"] = (weight.sum(), metrics["logps/forget"][1])
        return Terms((Term(-2 / self.beta * logsigmoid(-scaled)),), metrics)
