"""Flex-DPO: one beta for each side of the pair (arXiv 2406.07327)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import pair_metrics
from align.objectives.pairwise import Diverging

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class FlexDPO(Diverging):
    """DPO whose pull on the rejected answer is set apart from its pull on the chosen one.

    With unequal betas the loss depends on absolute log-ratios, and so on length: the offset that both sides share no
    longer cancels.
    """

    title: ClassVar = "Flex-DPO (3D-properties)"
    paper: ClassVar = (
        "arXiv 2406.07327; the paper does not print the loss, this is the natural reading of its two betas"
    )
    equation: ClassVar = (
        "m = beta_plus d_w - beta_minus d_l with d = log pi(y|x) - log pi_ref(y|x);  loss = -log sigmoid(m)"
    )
    when: ClassVar = (
        "When DPO drives rejected answers down too fast (drastic drop) and chosen ones with them (degradation). Keep "
        "beta_plus and lower beta_minus a little; much lower turns it into imitation of the chosen answers."
    )

    m: ClassVar = "beta_plus * d_w - beta_minus * d_l"
    pulls: ClassVar = ("beta_plus * s", "beta_minus * s")

    beta_plus: Annotated[float, Field(gt=0, description="scale of the chosen answer's log-ratio")] = 0.1
    beta_minus: Annotated[float, Field(ge=0, description="scale of the rejected answer's log-ratio")] = 0.08

    @property
    def margin_scale(self) -> float:
        return max(self.beta_plus, self.beta_minus)

    @property
    def own_scales(self) -> bool:
        return self.beta_plus != self.beta_minus

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.beta_plus * chosen - self.beta_minus * rejected)

    def metrics(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Mapping[str, tuple[Tensor, Tensor]]:
        gap = chosen - rejected if self.own_scales else None
        return pair_metrics(self.beta_plus * chosen, self.beta_minus * rejected, policy, gap=gap)
