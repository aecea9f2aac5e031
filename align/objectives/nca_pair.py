"""Noise contrastive alignment on pairs: either answer against the reference (arXiv 2402.05369)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Referenced

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class NCAPair(Referenced):
    """Tells each answer of a pair from noise of the reference, so that log-ratios have absolute targets."""

    title: ClassVar = "Noise Contrastive Alignment on pairs"
    paper: ClassVar = "arXiv 2402.05369, NCA with two answers and hard labels, as TRL's nca_pair"
    equation: ClassVar = (
        "r_w = beta (log pi(y_w|x) - log pi_ref(y_w|x)), r_l likewise;  "
        "loss = -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l)"
    )
    when: ClassVar = (
        "When the chosen log-prob must not fall as it may under DPO: it is raised until r_w = log 2 and held there, "
        "whatever the rejected answer does."
    )

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = ("beta * (1 - 1.5 * sigmoid(beta * d_w))", "beta * 0.5 * sigmoid(beta * d_l)")

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch.nn.functional import logsigmoid

        chosen, rejected = self.beta * chosen, self.beta * rejected
        return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
