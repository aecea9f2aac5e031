"""Anchored preference optimization, zero: chosen up, rejected down (arXiv 2408.06266, eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Referenced

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class APOZero(Referenced):
    """Each answer is moved away from the reference by itself, and less the further it already is."""

    title: ClassVar = "Anchored Preference Optimization, zero"
    paper: ClassVar = "arXiv 2408.06266, eq. 7, as TRL's apo_zero"
    equation: ClassVar = "loss = 1 - sigmoid(beta d_w) + sigmoid(beta d_l) with d = log pi(y|x) - log pi_ref(y|x)"
    when: ClassVar = (
        "When the chosen answers are better than what the model writes by itself: it raises them and lowers the "
        "rejected ones, each to a limit of its own."
    )

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = (
        "beta * sigmoid(beta * d_w) * sigmoid(-beta * d_w)",
        "beta * sigmoid(beta * d_l) * sigmoid(-beta * d_l)",
    )

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()
