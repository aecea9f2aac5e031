"""FLAT: forget and alternate answers alone, through an f-divergence between them (arXiv 2410.11143)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from align.objectives.base import Objective, Term, Terms, branch_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores

Divergence = Literal["kl", "total_variation", "jensen_shannon", "pearson", "jeffrey"]

# Released, but wrong for a probability: their activations want minus it, so the signs of the gradient come out turned.
_BACKWARDS = {
    "reverse_kl": "its released form raises the forget answer and lowers the alternate one",
    "squared_hellinger": "its released form raises the forget answer and lowers the alternate one",
    "neyman": "its released form lowers the alternate answer as well as the forget one",
}


def _refuse_backwards(value: Any) -> Any:
    if isinstance(value, str) and value in _BACKWARDS:
        raise ValueError(
            f"{value} does not unlearn: {_BACKWARDS[value]}. Use kl, total_variation, jensen_shannon, pearson or "
            "jeffrey."
        )
    return value


@dataclass(frozen=True)
class FLAT(Objective):
    """Minus the variational lower bound of an f-divergence between alternate and forget answers.

    P is the mean probability, not log-prob, that the model gives an answer's tokens. No reference, no retain rows.
    """

    title: ClassVar = "Forget data only loss adjustment"
    paper: ClassVar = "arXiv 2410.11143; g* and f* as in the authors' code, jeffrey with its exact conjugate"
    equation: ClassVar = "P = mean of pi(y_t|x, y_<t) over the answer's tokens;  loss = -g*(P_a) + f*(g*(P_f))"
    when: ClassVar = (
        "When there are no retain rows and no room for a reference: refusals or other alternates for the forget "
        "questions are enough."
    )

    pulls: ClassVar = "by token: a multiple of p_t / T, with the divergence's slope at P"

    divergence: Annotated[
        Divergence, BeforeValidator(_refuse_backwards), Field(description="the f-divergence; sets g* and f*")
    ] = "total_variation"
    denominator: Annotated[
        Literal["answer_tokens", "padded"],
        Field(description="P divides by the answer's tokens (paper), or by all positions of a padded row (code)"),
    ] = "answer_tokens"
    padded_length: Annotated[
        int, Field(ge=2, description="tokens of a padded row, for padded; the authors' TOFU loader has 500")
    ] = 500
    per: Annotated[
        Literal["sample", "batch"],
        Field(description="apply g* and f* to each row's P, or to the micro-batch's mean P (code)"),
    ] = "sample"

    @property
    def branches(self) -> tuple[str, ...]:
        return ("alternate", "forget")

    @property
    def coupled(self) -> str | None:
        if self.per == "sample":
            return None
        return "flat with per: batch averages P over the micro-batch, so the loss depends on the micro-batch's rows"

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        alternate, forget = self._probability(policy, "alternate"), self._probability(policy, "forget")
        metrics = branch_metrics(policy, "forget", "alternate")
        if self.per == "batch":
            # a micro-batch without rows has P = 0 and not 0 / 0, and no items to add up
            rows = max(forget.numel(), 1)
            alternate, forget = (p.sum().div(rows).expand(p.shape) for p in (alternate, forget))
        return Terms((Term(conjugate(forget, self.divergence) - activation(alternate, self.divergence)),), metrics)

    def _probability(self, policy: Scores, branch: str) -> Tensor:
        total = policy.total(branch, policy.tokens["logp"].exp())
        if self.denominator == "padded":
            return total / (self.padded_length - 1)  # labels are shifted by one
        return total / policy.count(branch).clamp(min=1)


def activation(v: Tensor, divergence: Divergence) -> Tensor:
    """g*(v) for probabilities ``v``."""
    from torch.nn.functional import logsigmoid

    if divergence == "total_variation":
        return v.tanh() / 2
    if divergence == "jensen_shannon":
        return _LOG_2 + logsigmoid(v)
    return v


def conjugate(v: Tensor, divergence: Divergence) -> Tensor:
    """f*(g*(v)) for probabilities ``v``."""
    from torch.nn.functional import logsigmoid

    if divergence == "kl":
        return (v - 1).exp()
    if divergence == "total_variation":
        return v.tanh() / 2
    if divergence == "jensen_shannon":
        return v - logsigmoid(v) - _LOG_2
    if divergence == "pearson":
        return v.square() / 4 + v
    w = lambert_w_of_exp(1 - v)
    return w + 1 / w + v - 2


def lambert_w_of_exp(s: Tensor) -> Tensor:
    """Lambert's W(e^s), the root of w + log w = s, for s from 0 to 1; differentiable once.

    The authors have a third-order Taylor polynomial of the conjugate, up to 0.018 off.
    """
    constant = s.detach()
    w = (1 + constant) / 2  # within 0.07 of the root
    for _ in range(4):
        w = w * (1 + constant - w.log()) / (1 + w)
    # one more step of Newton's from the root has the root's derivative w / (1 + w)
    return w - w / (1 + w) * (w + w.log() - s)


_LOG_2 = 0.6931471805599453
