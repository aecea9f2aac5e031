"""Full-vocabulary KL divergence to the reference at the target tokens of one branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from align.objectives.base import Objective, Terms
from align.objectives.nll import Norm, Positions, branch_read, norm_unit, normalised

if TYPE_CHECKING:
    from align.engine.reads import AnyRead
    from align.engine.scores import Scores


@dataclass(frozen=True)
class KL(Objective):
    """Keeps the policy's next-token distributions near the reference's on given text.

    The text is data, not samples of the policy, so this is a regularizer on those prefixes and no estimate of the
    sequence-level reverse KL.
    """

    title: ClassVar = "KL to the reference on given text"
    paper: ClassVar = "retain term of arXiv 2404.05868 (code: forward), KL prior of 2310.16763 (forward)"
    equation: ClassVar = (
        "forward: sum_v p_ref(v) log(p_ref(v) / p(v));  reverse: sum_v p(v) log(p(v) / p_ref(v));  "
        "at each target position of the branch, then token_mean, seq_mean or sum"
    )
    when: ClassVar = (
        "Beside a forget or preference loss, to hold behaviour on retained text without a preferred answer."
    )

    pulls: ClassVar = "moves whole distributions, not the text's log-prob"

    branch: Annotated[str, Field(pattern="^[a-z_]+$", description="the branch whose positions count")] = "chosen"
    direction: Annotated[Literal["forward", "reverse"], Field(description="KL(ref||policy) or KL(policy||ref)")] = (
        "forward"
    )
    norm: Annotated[Norm, Field(description="what the sum over positions is divided by")] = "token_mean"
    positions: Annotated[
        Positions, Field(description="which positions count: the answer's, or those of the prompt too")
    ] = "answer"

    @property
    def branches(self) -> tuple[str, ...]:
        return (branch_read(self.branch, self.positions),)

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def units(self) -> tuple[str, ...]:
        return (norm_unit(self.norm, *self.branches),)

    def reads(self) -> tuple[AnyRead, ...]:
        from align.engine.reads import KLToReference, LogProb

        return (LogProb(), KLToReference(self.direction))

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        (branch,) = self.branches
        kl = policy.sum(branch, f"kl_{self.direction}")
        term = normalised(kl, policy, branch, self.norm)
        return Terms((term,), {f"kl_{self.direction}/{branch}": (kl.detach().sum(), policy.count(branch).sum())})
