"""The Bradley-Terry loss of reward models (arXiv 1706.03741, eq. 1; 2203.02155, eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Term, Terms

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.reads import AnyRead
    from align.engine.scores import Scores


@dataclass(frozen=True)
class BradleyTerry(Objective):
    """Trains a reward model: the chosen answer shall have the higher score. A row may say how sure it is of that."""

    title: ClassVar = "Reward model (Bradley-Terry)"
    paper: ClassVar = "arXiv 1706.03741, eq. 1; 2203.02155, eq. 1; margin: 2307.09288, eq. 2; center: 2312.09244, eq. 2"
    equation: ClassVar = (
        "r = score of prompt and answer, p = preference of the row (1 where it has none, 0.5 a tie);  "
        "m = r_w - r_l - margin of the row;  "
        "loss = -p log sigmoid(m) - (1 - p) log sigmoid(-m) + center (r_w + r_l)^2"
    )
    when: ClassVar = (
        "To train a reward model, which then judges answers (judge: {reward: RUN}). It is given prompt, chosen and "
        "rejected as dpo is. Ask it afterwards whether it reads the prompt: align probe consistency."
    )
    pulls: ClassVar = "on scores: p sigmoid(-m) - (1 - p) sigmoid(m) on either, and center brings both towards 0"
    margin: Annotated[
        bool, Field(description="subtract the rows' column margin, such as a difference of ratings, from r_w - r_l")
    ] = False
    center: Annotated[
        float, Field(ge=0, description="weight of (r_w + r_l)^2, which keeps scores around 0; 0.01 is usual")
    ] = 0.0

    @property
    def row_values(self) -> tuple[str, ...]:
        return ("preference", "margin") if self.margin else ("preference",)

    def reads(self) -> tuple[AnyRead, ...]:
        from align.engine.reads import Score

        return (Score(),)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        from torch.nn.functional import logsigmoid

        chosen, rejected = policy.score("chosen"), policy.score("rejected")
        preference = policy.value("preference", chosen, missing=1.0)
        gap = chosen - rejected
        m = gap - policy.value("margin", chosen, missing=0.0) if self.margin else gap
        losses = [Term(-preference * logsigmoid(m) - (1 - preference) * logsigmoid(-m))]
        if self.center:
            losses.append(Term((chosen + rejected).square(), weight=self.center))
        return Terms(tuple(losses), reward_metrics(chosen.detach(), rejected.detach(), preference))


def reward_metrics(chosen: Tensor, rejected: Tensor, preference: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Metrics of scores [B] as (sum, count).

    ``rewards/margins`` is the score of the preferred answer less that of the other, and of a tie chosen less rejected.

    ``rewards/accuracies`` is the share of pairs whose preferred answer has the higher score, equal scores as half. A
    pair whose ``preference`` is one half prefers neither, and does not count.
    """
    count = chosen.new_full((), float(chosen.numel()))
    side = (preference - 0.5).sign()
    hits = (side * (chosen - rejected) > 0).float() + 0.5 * (chosen == rejected).float()
    turned = (preference >= 0.5).to(chosen.dtype) * 2 - 1
    return {
        "rewards/chosen": (chosen.sum(), count),
        "rewards/rejected": (rejected.sum(), count),
        "rewards/margins": ((turned * (chosen - rejected)).sum(), count),
        "rewards/accuracies": ((hits * side.abs()).sum(), side.abs().sum()),
    }
