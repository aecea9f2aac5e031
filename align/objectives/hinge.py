"""Hinge loss on the DPO margin (SLiC-HF's loss on implicit rewards, arXiv 2305.10425)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Term, Terms, pair_metrics

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class Hinge(Objective):
    """Pairs whose margin exceeds 1 stop pulling."""

    title: ClassVar = "Hinge on the DPO margin"
    paper: ClassVar = "arXiv 2305.10425 (SLiC-HF), with reference as in 2309.06657"
    equation: ClassVar = "loss = max(0, 1 - beta (d_w - d_l)) with d = log pi(y|x) - log pi_ref(y|x)"
    when: ClassVar = "When pairs that are already well separated should no longer move the model."

    beta: Annotated[float, Field(gt=0, description="reciprocal of the margin, in nats, that is asked for")] = 0.1

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        from torch import relu

        assert reference is not None
        chosen = self.beta * (policy.sum("chosen") - reference.sum("chosen"))
        rejected = self.beta * (policy.sum("rejected") - reference.sum("rejected"))
        return Terms((Term(relu(1 - (chosen - rejected))),), pair_metrics(chosen, rejected, policy))
