"""Anchored preference optimization, down: both answers down, the rejected one more (arXiv 2408.06266)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Referenced

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class APODown(Referenced):
    """Lowers the chosen answer, and sets the rejected one apart from it."""

    title: ClassVar = "Anchored Preference Optimization, down"
    paper: ClassVar = "arXiv 2408.06266, eq. 8, as TRL's apo_down"
    equation: ClassVar = (
        "loss = sigmoid(beta d_w) + 1 - sigmoid(beta (d_w - d_l)) with d = log pi(y|x) - log pi_ref(y|x)"
    )
    when: ClassVar = (
        "When the model already writes better than the chosen answers: both get less likely, the rejected ones more so."
    )

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = (
        "beta * s * (1 - s) - beta * sigmoid(beta * d_w) * sigmoid(-beta * d_w)",
        "beta * s * (1 - s)",
    )

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        chosen, rejected = self.beta * chosen, self.beta * rejected
        return chosen.sigmoid() + (rejected - chosen).sigmoid()
