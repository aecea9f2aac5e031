"""Gradient ascent on the forget answers: the oldest baseline of unlearning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Terms, branch_metrics
from align.objectives.nll import Norm, norm_pull, norm_unit, normalised

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class GradAscent(Objective):
    """The negative of ``nll`` on the forget answer; not bounded below."""

    title: ClassVar = "Gradient ascent"
    paper: ClassVar = "arXiv 2401.06121 (TOFU); arXiv 2404.05868, eq. 1, sums over tokens (norm: sum)"
    equation: ClassVar = (
        "l = log pi(y_f|x) over the answer's tokens, n their number;  token_mean: sum l / sum n,  "
        "seq_mean: mean of l / n,  sum: mean of l"
    )
    when: ClassVar = (
        "As a baseline, or for a handful of steps: it diverges. With nll on retain it is GradDiff, with kl on retain "
        "GA+KL."
    )

    norm: Annotated[Norm, Field(description="what the sum of token log-probs is divided by")] = "token_mean"

    @property
    def pulls(self) -> tuple[str, str]:
        return ("0", norm_pull(self.norm, "T_f"))

    @property
    def branches(self) -> tuple[str, ...]:
        return ("forget",)

    @property
    def units(self) -> tuple[str, ...]:
        return (norm_unit(self.norm, "forget"),)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        term = normalised(policy.sum("forget"), policy, "forget", self.norm)
        return Terms((term,), branch_metrics(policy, "forget"))
