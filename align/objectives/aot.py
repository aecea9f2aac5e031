"""Alignment via optimal transport: chosen answers beat rejected ones as a whole (arXiv 2406.05882)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from align.objectives.base import Term, Terms
from align.objectives.pairwise import Referenced, logistic

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


def _unweighted(value: bool) -> bool:
    if value:
        raise ValueError("this loss sorts over the pairs, so a weight would have no pair to belong to. Remove it.")
    return value


@dataclass(frozen=True)
class AOT(Referenced):
    """DPO's loss on sorted margins: the policy's i-th smallest margin must exceed the reference's i-th smallest.

    That asks for first-order dominance of the distribution of margins, over the pairs of a micro-batch.
    """

    title: ClassVar = "Alignment via Optimal Transport, paired"
    paper: ClassVar = "arXiv 2406.05882, the paired form, as TRL's aot"
    equation: ClassVar = (
        "u = sort(log pi(y_w|x) - log pi(y_l|x)), v = sort(log pi_ref(y_w|x) - log pi_ref(y_l|x)) over the pairs of a "
        "micro-batch, m = beta (u - v);  loss = -(1 - e) log sigmoid(m) - e log sigmoid(-m), e = label_smoothing"
    )
    when: ClassVar = (
        "When all margins together should grow, and not each pair's by itself. Needs micro-batches of many pairs: with "
        "one pair it is dpo."
    )
    pulls: ClassVar = "DPO's, of the margin at the same rank"

    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, description="assumed share of flipped labels")] = 0.0
    use_weighting: Annotated[
        bool, Field(description="no weights here: sorted values belong to no pair"), AfterValidator(_unweighted)
    ] = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _unweighted(self.use_weighting)

    @property
    def coupled(self) -> str:
        return "the loss sorts over the pairs of a micro-batch and so depends on how many those are"

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        assert reference is not None
        losses = logistic(self.beta * self.gains(policy, reference), self.label_smoothing)
        return Terms((Term(losses),), self.metrics(*self.measured(policy, reference), policy))

    def gains(self, policy: Scores, reference: Scores) -> Tensor:
        """By how much each sorted value exceeds its counterpart, [B] in nats."""
        ours, theirs = (
            (self.answer(scores, policy, "chosen") - self.answer(scores, policy, "rejected")).sort().values
            for scores in (policy, reference)
        )
        return ours - theirs
