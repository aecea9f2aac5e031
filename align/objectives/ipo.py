"""Identity Preference Optimization (arXiv 2310.12036, eq. 17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from align.objectives.base import Objective, Term, Terms, pair_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class IPO(Objective):
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
    def needs_reference(self) -> bool:
        return True

    @property
    def margin_scale(self) -> float | None:
        return self.tau if self.reduction == "sum" else None  # per token a nat of the sum counts by length

    @property
    def own_scales(self) -> bool:
        return self.reduction == "per_token"

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        assert reference is not None
        chosen = policy.sum("chosen") - reference.sum("chosen")
        rejected = policy.sum("rejected") - reference.sum("rejected")
        gap = chosen - rejected if self.own_scales else None
        if self.reduction == "per_token":
            chosen, rejected = _per_token(chosen, policy, "chosen"), _per_token(rejected, policy, "rejected")
        losses = (chosen - rejected - 1 / (2 * self.tau)) ** 2
        return Terms((Term(losses),), pair_metrics(self.tau * chosen, self.tau * rejected, policy, gap=gap))


def _per_token(ratio: Tensor, policy: Scores, branch: str) -> Tensor:
    return ratio / policy.count(branch).clamp(min=1)
