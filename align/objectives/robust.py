"""Robust DPO: unbiased under labels that are flipped at a known rate (arXiv 2403.00409)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Diverging

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class Robust(Diverging):
    """DPO's loss corrected so that its mean over flipped labels is DPO's loss on the true ones."""

    title: ClassVar = "Robust DPO"
    paper: ClassVar = "arXiv 2403.00409, the unbiased loss, as TRL's robust; the default rate is ours"
    equation: ClassVar = (
        "m = beta (d_w - d_l), d = log pi(y|x) - log pi_ref(y|x), e = label_smoothing;  "
        "loss = (-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e)"
    )
    when: ClassVar = (
        "When labels are flipped at random at a rate that you can tell. Its pull never ends, not even on pairs that "
        "are far apart, and the loss has no lower bound; dpo with label_smoothing stops at a finite margin instead."
    )

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = (
        "beta * ((1 - label_smoothing) * s + label_smoothing * (1 - s)) / (1 - 2 * label_smoothing)",
        "beta * ((1 - label_smoothing) * s + label_smoothing * (1 - s)) / (1 - 2 * label_smoothing)",
    )

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, description="share of flipped labels; 0 is dpo")] = 0.1

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch.nn.functional import logsigmoid

        margin = self.beta * chosen - self.beta * rejected
        clean, flipped = logsigmoid(margin), logsigmoid(-margin)
        return (-(1 - self.label_smoothing) * clean + self.label_smoothing * flipped) / (1 - 2 * self.label_smoothing)
