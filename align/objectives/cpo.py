"""Contrastive Preference Optimization: DPO without a reference, plus likelihood (arXiv 2401.08417)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from align.objectives.base import Term, Terms, pair_metrics
from align.objectives.nll import NLL, norm_pull
from align.objectives.pairwise import Pairwise, logistic

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


def _smoothes(value: float, form: str | None) -> float:
    if value and form in ("hinge", "ipo"):
        raise ValueError(f"form {form} has no label smoothing. Remove label_smoothing, or use form: sigmoid.")
    return value


def _smoothes_field(value: float, info: ValidationInfo) -> float:
    return _smoothes(value, info.data.get("form"))


@dataclass(frozen=True)
class CPO(Pairwise):
    """A pairwise loss of bare log-probs, in one of three forms, and the likelihood of the chosen answers."""

    title: ClassVar = "Contrastive Preference Optimization"
    paper: ClassVar = "arXiv 2401.08417, eq. 3 and its likelihood term, as TRL's experimental CPOTrainer"
    equation: ClassVar = (
        "h = l_w - l_l of log-probs, of their means per token for ipo;  loss = cpo_alpha NLL(chosen) + one of  "
        "sigmoid: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e = label_smoothing,  "
        "hinge: max(0, 1 - beta h),  ipo: (h - 1 / (2 beta))^2"
    )
    when: ClassVar = (
        "When there is no memory for a reference and the chosen answers are good enough to imitate: the likelihood "
        "term is what keeps the policy in place. Sums of log-probs favour short answers; simpo takes means."
    )

    form: Annotated[Literal["sigmoid", "hinge", "ipo"], Field(description="which loss of the pair")] = "sigmoid"
    beta: Annotated[float, Field(gt=0, description="scale of the log-probs; of ipo, the target is 1/(2 beta)")] = 0.1
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=0.5, description="assumed share of flipped labels, for form: sigmoid"),
        AfterValidator(_smoothes_field),
    ] = 0.0
    cpo_alpha: Annotated[float, Field(ge=0, description="weight of the chosen answers' token-mean likelihood")] = 1.0

    def __post_init__(self) -> None:
        _smoothes(self.label_smoothing, self.form)

    @property
    def m(self) -> str:
        return "l_w / T_w - l_l / T_l" if self.form == "ipo" else "beta * (l_w - l_l)"

    @property
    def pulls(self) -> tuple[str, str]:
        forms = {
            "sigmoid": "beta * (s - label_smoothing)",
            "hinge": "beta * (m < 1)",
            "ipo": "2 * (1 / (2 * beta) - m)",
        }
        chosen, rejected = (forms[self.form] + (f" / T_{i}" if self.form == "ipo" else "") for i in "wl")
        return f"{chosen} + cpo_alpha * {norm_pull('token_mean', 'T_w')}", rejected

    @property
    def units(self) -> tuple[str, ...]:
        return ("examples", *NLL().units)

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        chosen, rejected = (self._measure(policy, branch) for branch in ("chosen", "rejected"))
        imitation = NLL()(policy, reference)
        (likelihood,) = imitation.losses
        losses = (Term(self._losses(chosen - rejected)), Term(likelihood.losses, likelihood.unit, self.cpo_alpha))
        return Terms(losses, {**pair_metrics(self.beta * chosen, self.beta * rejected, policy), **imitation.metrics})

    def _measure(self, policy: Scores, branch: str) -> Tensor:
        return policy.mean(branch) if self.form == "ipo" else policy.sum(branch)

    def _losses(self, gap: Tensor) -> Tensor:
        if self.form == "hinge":
            return (1 - self.beta * gap).relu()
        if self.form == "ipo":
            return (gap - 1 / (2 * self.beta)) ** 2
        return logistic(self.beta * gap, self.label_smoothing)
