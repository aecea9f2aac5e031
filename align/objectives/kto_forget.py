"""KTO as a baseline of unlearning: the forget answer is undesirable (arXiv 2404.05868, code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from align.objectives.base import Objective, Term, Terms, branch_metrics

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class KTOForget(Objective):
    """The forget answer's log-ratio is pushed below that of alternate answers, which themselves take no gradient.

    As released: the reference point z is not multiplied with beta and not cut off at 0, and 1 is added. The paper's
    eqs. 18-19 have beta KL in its place and add nothing.
    """

    title: ClassVar = "KTO with undesirable answers alone"
    paper: ClassVar = "arXiv 2404.05868, the authors' code (their eqs. 18-19 differ); KTO: arXiv 2402.01306"
    equation: ClassVar = (
        "d = log pi(y|x) - log pi_ref(y|x);  z = mean of d(alternate), no gradient;  "
        "logsigmoid: 1 - (2 / beta) log sigmoid(z - beta d(forget)),  "
        "sigmoid: 1 - (2 / beta) sigmoid(z - beta d(forget))"
    )
    when: ClassVar = "As a baseline beside npo, which is the logsigmoid form with z = 0. Alternates only set its scale."

    m: ClassVar = "mean(d_a) - beta * d_f"

    form: Annotated[Literal["logsigmoid", "sigmoid"], Field(description="which of the two released losses")] = (
        "logsigmoid"
    )
    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1

    @property
    def pulls(self) -> tuple[str, str]:
        return ("0", "2 * s" if self.form == "logsigmoid" else "2 * s * (1 - s)")

    @property
    def branches(self) -> tuple[str, ...]:
        return ("forget", "alternate")

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def coupled(self) -> str | None:
        return "its reference point z is a mean over the micro-batch, so the loss depends on the micro-batch's rows"

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        from torch.nn.functional import logsigmoid

        assert reference is not None
        alternate = (policy.sum("alternate") - reference.sum("alternate")).detach()
        # a micro-batch without rows, which keeps ranks in step, has z = 0 and not 0 / 0
        z = alternate.sum() / max(alternate.numel(), 1)
        argument = z - self.beta * (policy.sum("forget") - reference.sum("forget"))
        value = logsigmoid(argument) if self.form == "logsigmoid" else argument.sigmoid()
        metrics = branch_metrics(policy, "forget", "alternate")
        metrics["kto/z"] = (alternate.sum(), metrics["logps/alternate"][1])
        return Terms((Term(1 - 2 / self.beta * value),), metrics)
