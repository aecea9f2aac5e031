"""Direct Preference Optimization (arXiv 2305.18290, eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Diverging, logistic

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class DPO(Diverging):
    """Logistic loss on the difference of implicit rewards, with conservative label smoothing."""

    title: ClassVar = "Direct Preference Optimization"
    paper: ClassVar = (
        "arXiv 2305.18290, eq. 7; label smoothing: eric-mitchell.com/cdpo.pdf, eq. 3; dpop_lambda: 2402.13228; "
        "length_alpha: 2403.19159; beta_alpha: after 2407.08639"
    )
    equation: ClassVar = (
        "d_w = log pi(y_w|x) - log pi_ref(y_w|x), d_l likewise;  m = beta (d_w - d_l - dpop_lambda max(0, -d_w)) "
        "+ length_alpha (|y_w| - |y_l|), with beta_alpha a beta for each pair;  "
        "loss = -(1 - label_smoothing) log sigmoid(m) - label_smoothing log sigmoid(-m)"
    )
    when: ClassVar = (
        "The usual first choice for pairs. Watch the chosen log-prob: it often falls together with the rejected one, "
        "and then flex_dpo or rpo keeps more of it."
    )

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, description="assumed share of flipped labels")] = 0.0

    dpop_lambda: Annotated[
        float, Field(ge=0, description="penalty, per nat, on chosen answers below the reference (DPO-positive)")
    ] = 0.0
    length_alpha: Annotated[
        float, Field(ge=0, description="margin that a token more of the chosen answer accounts for (R-DPO)")
    ] = 0.0
    beta_alpha: Annotated[
        float, Field(ge=0, description="how much a pair's beta grows with its margin over the mean one (as beta-DPO)")
    ] = 0.0

    @property
    def m(self) -> str:
        penalty = " + dpop_lambda * (d_w < 0) * d_w" if self.dpop_lambda else ""
        return f"beta * (d_w - d_l{penalty})" + (" + length_alpha * (T_w - T_l)" if self.length_alpha else "")

    @property
    def pulls(self) -> tuple[str, str] | str:
        if self.beta_alpha:
            return "those of DPO, each pair with a beta of its own"
        pull = "beta * (s - label_smoothing)"
        return f"{pull} * (1 + dpop_lambda * (d_w < 0))" if self.dpop_lambda else pull, pull

    @property
    def coupled(self) -> str | None:
        if not self.beta_alpha:
            return None
        return "beta_alpha compares margins with their mean over the micro-batch, so it does nothing to a single pair"

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        beta = self._betas(chosen, rejected) if self.beta_alpha else self.beta
        margin = beta * chosen - beta * rejected - beta * self.dpop_lambda * (-chosen).relu()
        longer = policy.count("chosen") - policy.count("rejected")
        return logistic(margin + self.length_alpha * longer, self.label_smoothing)

    def _betas(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """One beta for each pair, [B], no gradient; a tenth of the field at least, so that it never turns around."""
        margin = self.beta * (chosen - rejected).detach()
        mean = margin.sum() / max(margin.numel(), 1)
        return self.beta * (1 + self.beta_alpha * (margin - mean)).clamp(min=0.1)
