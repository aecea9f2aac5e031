"""DPO with log-ratios per token, so that long answers do not weigh more (arXiv 2411.15124)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import pair_metrics
from align.objectives.pairwise import Diverging, per_token

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class SigmoidNorm(Diverging):
    """DPO's logistic loss on each answer's mean log-ratio."""

    title: ClassVar = "Length-normalised DPO"
    paper: ClassVar = "arXiv 2411.15124 (Tulu 3), as TRL's sigmoid_norm"
    equation: ClassVar = (
        "m = beta (d_w / T_w - d_l / T_l), d = log pi(y|x) - log pi_ref(y|x) and T an answer's tokens;  "
        "loss = -log sigmoid(m)"
    )
    when: ClassVar = (
        "When answers differ much in length and DPO makes them longer. Means are much smaller than sums, so beta is "
        "larger than DPO's by about an answer's length (its authors: 5)."
    )

    m: ClassVar = "beta * (d_w / T_w - d_l / T_l)"
    pulls: ClassVar = ("beta * s / T_w", "beta * s / T_l")

    beta: Annotated[float, Field(gt=0, description="scale of the mean log-ratio; TRL's default is 0.1")] = 5.0

    @property
    def margin_scale(self) -> None:
        return None  # a nat of the sum counts by length

    @property
    def own_scales(self) -> bool:
        return True

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch.nn.functional import logsigmoid

        chosen, rejected = self._rewards(chosen, rejected, policy)
        return -logsigmoid(chosen - rejected)

    def metrics(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Mapping[str, tuple[Tensor, Tensor]]:
        return pair_metrics(*self._rewards(chosen, rejected, policy), policy, gap=chosen - rejected)

    def _rewards(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> tuple[Tensor, Tensor]:
        sides = (per_token(chosen, policy, "chosen"), per_token(rejected, policy, "rejected"))
        return self.beta * sides[0], self.beta * sides[1]
