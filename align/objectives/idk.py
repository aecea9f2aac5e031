"""IDK+RT: plain fine-tuning on alternate answers and retained ones together (arXiv 2404.05868, code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align.objectives.base import Objective, Term, Terms, branch_metrics

if TYPE_CHECKING:
    from align.engine.scores import Scores

_UNIT = "tokens:alternate+tokens:retain"


@dataclass(frozen=True)
class IDK(Objective):
    """One mean over the tokens of both branches, so that the longer answers, as a rule the retained, weigh more.

    Two ``nll`` entries are another loss: the sum of two means.
    """

    title: ClassVar = "Fine-tuning on alternate answers and retained ones"
    paper: ClassVar = (
        "arXiv 2404.05868, IDK+RT of the authors' code; preference optimization in arXiv 2401.06121 (TOFU)"
    )
    equation: ClassVar = "loss = -(sum log pi(y_a|x) + sum log pi(y_r|x_r)) / (tokens of both)"
    when: ClassVar = "As a baseline that never lowers the forget answer directly: it only teaches another one."

    pulls: ClassVar = ("1 / mean(T_a + T_r)", "0")  # on alternate, and as much on retain

    @property
    def branches(self) -> tuple[str, ...]:
        return ("alternate", "retain")

    @property
    def units(self) -> tuple[str, ...]:
        return (_UNIT,)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        losses = -(policy.sum("alternate") + policy.sum("retain"))
        return Terms((Term(losses, _UNIT),), branch_metrics(policy, "alternate", "retain"))
