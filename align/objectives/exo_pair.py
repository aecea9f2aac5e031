"""EXO on pairs: the reverse KL to the labels' own distribution (arXiv 2402.00856)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Diverging

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class EXOPair(Diverging):
    """Reverse KL of two distributions over the pair: the one that the implicit rewards give, and that of the labels.

    The labels' gives the chosen answer 1 - label_smoothing. At 0 the divergence is infinite, so it must be more.
    """

    title: ClassVar = "Efficient Exact Optimization on pairs"
    paper: ClassVar = "arXiv 2402.00856, eq. 16 with two answers, as TRL's exo_pair"
    equation: ClassVar = (
        "m = beta (d_w - d_l), q = sigmoid(m), e = label_smoothing;  "
        "loss = q log(q / (1 - e)) + (1 - q) log((1 - q) / e) with d = log pi(y|x) - log pi_ref(y|x)"
    )
    when: ClassVar = (
        "When the policy is too small to imitate everything that DPO's forward KL covers: the reverse KL seeks modes. "
        "The margin has a finite target, log((1 - e) / e), and pairs far on the wrong side hardly pull."
    )

    m: ClassVar = "beta * (d_w - d_l)"
    pulls: ClassVar = (
        "beta * s * (1 - s) * (log((1 - label_smoothing) / label_smoothing) - m)",
        "beta * s * (1 - s) * (log((1 - label_smoothing) / label_smoothing) - m)",
    )

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1
    label_smoothing: Annotated[
        float, Field(gt=0, lt=0.5, description="share of the labels' distribution that the rejected answer has")
    ] = 1e-3

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch.nn.functional import logsigmoid

        margin = self.beta * chosen - self.beta * rejected
        sides = ((margin, 1 - self.label_smoothing), (-margin, self.label_smoothing))
        first, second = (m.sigmoid() * (logsigmoid(m) - math.log(share)) for m, share in sides)
        return first + second
