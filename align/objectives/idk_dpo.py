"""DPO of an alternate answer ("I don't know") over the forget answer (arXiv 2404.05868, eq. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Term, Terms, branch_metrics, pair_metrics

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class IdkDPO(Objective):
    """The alternate answer is the chosen one, the forget answer the rejected one."""

    title: ClassVar = "DPO of an alternate answer"
    # eq. 2 prints 1 / beta; the authors' code, and with it their numbers, has 2 / beta
    paper: ClassVar = "arXiv 2404.05868, eq. 2, with the authors' code's prefactor 2 / beta; AltPO: arXiv 2409.13474"
    equation: ClassVar = (
        "d_a = log pi(y_a|x) - log pi_ref(y_a|x), d_f likewise for the forget answer;  "
        "loss = -(2 / beta) log sigmoid(beta (d_a - d_f))"
    )
    when: ClassVar = (
        "When the model should say something else in place of the forgotten answer: a refusal, or alternates that the "
        "model made up itself (AltPO). With refusals it tends to refuse retained questions as well."
    )

    m: ClassVar = "beta * (d_a - d_f)"
    pulls: ClassVar = ("2 * s", "2 * s")

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1

    @property
    def branches(self) -> tuple[str, ...]:
        return ("alternate", "forget")

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        from torch.nn.functional import logsigmoid

        assert reference is not None
        alternate = self.beta * (policy.sum("alternate") - reference.sum("alternate"))
        forget = self.beta * (policy.sum("forget") - reference.sum("forget"))
        metrics = pair_metrics(alternate, forget, policy, ("alternate", "forget"))
        metrics |= branch_metrics(policy, "forget", "alternate")
        return Terms((Term(-2 / self.beta * logsigmoid(alternate - forget)),), metrics)
