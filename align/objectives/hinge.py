"""Hinge loss on the DPO margin (SLiC-HF's loss on implicit rewards, arXiv 2305.10425)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Diverging

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class Hinge(Diverging):
    """Pairs whose margin exceeds 1 stop pulling."""

    title: ClassVar = "Hinge on the DPO margin"
    paper: ClassVar = "arXiv 2305.10425 (SLiC-HF), with reference as in 2309.06657"
    equation: ClassVar = "loss = max(0, 1 - beta (d_w - d_l)) with d = log pi(y|x) - log pi_ref(y|x)"
    when: ClassVar = "When pairs that are already well separated should no longer move the model."

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = ("beta * (m < 1)", "beta * (m < 1)")

    beta: Annotated[float, Field(gt=0, description="reciprocal of the margin, in nats, that is asked for")] = 0.1

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch import relu

        return relu(1 - (self.beta * chosen - self.beta * rejected))
