"""Binary classifier optimization on pairs: each answer is good or bad by itself (arXiv 2404.04656)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Referenced

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class BCOPair(Referenced):
    """Cross-entropy of a classifier whose logit is an answer's implicit reward.

    The paper shifts rewards by a running mean of theirs; this form, as TRL's, has no shift.
    """

    title: ClassVar = "Binary Classifier Optimization on pairs"
    paper: ClassVar = "arXiv 2404.04656, without its reward shift, as TRL's bco_pair"
    equation: ClassVar = "loss = -log sigmoid(beta d_w) - log sigmoid(-beta d_l) with d = log pi(y|x) - log pi_ref(y|x)"
    when: ClassVar = (
        "When each answer is labelled good or bad and pairs were made of them afterwards. It bounds DPO's loss from "
        "above, and the chosen answer is pulled up by itself, however far down the rejected one is."
    )

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = ("beta * sigmoid(-beta * d_w)", "beta * sigmoid(beta * d_l)")

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.beta * chosen) - logsigmoid(-self.beta * rejected)
