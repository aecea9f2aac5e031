"""Negative Preference Optimization (arXiv 2404.05868, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Term, Terms, branch_metrics

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class NPO(Objective):
    """DPO without the chosen answer: the forget answer is pushed below the reference, less and less the further it is.

    Log-probs are summed over the answer's tokens, not averaged.
    """

    title: ClassVar = "Negative Preference Optimization"
    paper: ClassVar = "arXiv 2404.05868, eq. 3"
    equation: ClassVar = "d = log pi(y_f|x) - log pi_ref(y_f|x);  loss = -(2 / beta) log sigmoid(-beta d)"
    when: ClassVar = (
        "The usual first choice for forgetting. It slows down by itself where gradient ascent diverges; add nll or kl "
        "on the branch retain to hold the rest up."
    )

    m: ClassVar = "-beta * d_f"
    pulls: ClassVar = ("0", "2 * s")

    beta: Annotated[float, Field(gt=0, description="larger stops sooner; towards 0 it is gradient ascent")] = 0.1

    @property
    def branches(self) -> tuple[str, ...]:
        return ("forget",)

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        from torch.nn.functional import logsigmoid

        assert reference is not None
        scaled = self.beta * (policy.sum("forget") - reference.sum("forget"))
        metrics = branch_metrics(policy, "forget")
        # the gradient is that of gradient ascent times this weight, which lies in (0, 2) and is 1 at the start
        weight = 2 * scaled.detach().sigmoid()
        metrics["weight/forget"] = (weight.sum(), metrics["logps/forget"][1])
        return Terms((Term(-2 / self.beta * logsigmoid(-scaled)),), metrics)
