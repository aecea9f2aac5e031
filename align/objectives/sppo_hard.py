"""SPPO with hard labels: each answer of a pair is moved to a target of its own (arXiv 2405.00675)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.pairwise import Referenced

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class SPPOHard(Referenced):
    """Squared distance of both log-ratios from plus and minus one half over beta.

    The paper estimates how often an answer wins and aims at beta^-1 (P - 1/2); with hard labels P is 1 for the chosen
    answer and 0 for the rejected one.
    """

    title: ClassVar = "Self-Play Preference Optimization, hard labels"
    paper: ClassVar = "arXiv 2405.00675, eq. 4.7 with P = 1 and 0, as TRL's sppo_hard"
    equation: ClassVar = "d = log pi(y|x) - log pi_ref(y|x);  loss = (d_w - 1 / (2 beta))^2 + (d_l + 1 / (2 beta))^2"
    when: ClassVar = (
        "In rounds (its reference is then the policy at the start of the round). The chosen answer has a target of its "
        "own, so it is raised and not only set apart from the rejected one."
    )

    m: ClassVar = "d_w - d_l"
    pulls: ClassVar = ("2 * (1 / (2 * beta) - d_w)", "2 * (1 / (2 * beta) + d_l)")

    beta: Annotated[float, Field(gt=0, description="targets are plus and minus 1/(2 beta) nats")] = 0.1

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        target = 1 / (2 * self.beta)
        return (chosen - target) ** 2 + (rejected + target) ** 2
