"""Alignment via optimal transport where chosen and rejected answers are no pairs (arXiv 2406.05882)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align.objectives.aot import AOT

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class AOTUnpaired(AOT):
    """The i-th smallest log-ratio of the chosen answers must exceed the i-th smallest of the rejected ones."""

    title: ClassVar = "Alignment via Optimal Transport, unpaired"
    paper: ClassVar = "arXiv 2406.05882, the unpaired form, as TRL's aot_unpaired"
    equation: ClassVar = (
        "d = log pi(y|x) - log pi_ref(y|x), m = beta (sort(d_w) - sort(d_l)) over the answers of a micro-batch;  "
        "loss = -(1 - e) log sigmoid(m) - e log sigmoid(-m), e = label_smoothing"
    )
    when: ClassVar = (
        "When good and bad answers are to different prompts, so that which of them share a row means nothing. Needs "
        "micro-batches of many rows."
    )
    pulls: ClassVar = "DPO's, of answers at the same rank"

    def gains(self, policy: Scores, reference: Scores) -> Tensor:
        chosen, rejected = self.measured(policy, reference)
        return chosen.sort().values - rejected.sort().values
