"""Identity Preference Optimization (arXiv 2310.12036, eq. 17)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from align.objectives.base import pair_metrics
from align.objectives.pairwise import Diverging, per_token

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class IPO(Diverging):
    """Squared loss that aims the log-ratio difference at 1/(2 tau) instead of pushing it without end."""

    title: ClassVar = "Identity Preference Optimization"
    paper: ClassVar = "arXiv 2310.12036, eq. 17; per_token as in TRL and the authors' note on lengths"
    equation: ClassVar = (
        "h = d_w - d_l, with d = log pi(y|x) - log pi_ref(y|x) summed over tokens, or divided by the answer's length "
        "(reduction: per_token);  loss = (h - 1 / (2 tau))^2"
    )
    when: ClassVar = "When labels are nearly deterministic and DPO overfits them: the target margin is finite."

    tau: Annotated[float, Field(gt=0, description="regularisation; the target margin is 1/(2 tau)")] = 0.1
    reduction: Annotated[Literal["sum", "per_token"], Field(description="log-ratio of the sequence or per token")] = (
        "per_token"
    )

    @property
    def m(self) -> str:
        return "d_w / T_w - d_l / T_l" if self.own_scales else "d_w - d_l"

    @property
    def pulls(self) -> tuple[str, str]:
        pull = "2 * (1 / (2 * tau) - m)"
        return (f"{pull} / T_w", f"{pull} / T_l") if self.own_scales else (pull, pull)

    @property
    def margin_scale(self) -> float | None:
        return self.tau if self.reduction == "sum" else None  # per token a nat of the sum counts by length

    @property
    def own_scales(self) -> bool:
        return self.reduction == "per_token"

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        chosen, rejected = self._reduced(chosen, rejected, policy)
        return (chosen - rejected - 1 / (2 * self.tau)) ** 2

    def metrics(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Mapping[str, tuple[Tensor, Tensor]]:
        gap = chosen - rejected if self.own_scales else None
        chosen, rejected = self._reduced(chosen, rejected, policy)
        return pair_metrics(self.tau * chosen, self.tau * rejected, policy, gap=gap)

    def _reduced(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> tuple[Tensor, Tensor]:
        if self.reduction == "sum":
            return chosen, rejected
        return per_token(chosen, policy, "chosen"), per_token(rejected, policy, "rejected")
