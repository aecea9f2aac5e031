"""Direct Preference Optimization (arXiv 2305.18290, eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Diverging

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class DPO(Diverging):
    """Logistic loss on the difference of implicit rewards, with conservative label smoothing."""

    title: ClassVar = "Direct Preference Optimization"
    paper: ClassVar = "arXiv 2305.18290, eq. 7; label smoothing: eric-mitchell.com/cdpo.pdf, eq. 3"
    equation: ClassVar = (
        "d_w = log pi(y_w|x) - log pi_ref(y_w|x), d_l likewise;  m = beta (d_w - d_l);  "
        "loss = -(1 - label_smoothing) log sigmoid(m) - label_smoothing log sigmoid(-m)"
    )
    when: ClassVar = (
        "The usual first choice for pairs. Watch the chosen log-prob: it often falls together with the rejected one, "
        "and then flex_dpo or rpo keeps more of it."
    )

    margin: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = ("beta * (s - label_smoothing)", "beta * (s - label_smoothing)")

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, description="assumed share of flipped labels")] = 0.0

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch.nn.functional import logsigmoid

        margin = self.beta * chosen - self.beta * rejected
        return -(1 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)
