"""Kahneman-Tversky Optimization on rows with one labelled answer (arXiv 2402.01306)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from align.objectives.base import Objective, Term, Terms

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


@dataclass(frozen=True)
class KTO(Objective):
    """Each answer is good or bad by itself: its log-ratio is pushed above or below a reference point z.

    z estimates the KL divergence to the reference by answers to other prompts (branch ``mismatch``); no gradient goes
    through it. The form ``apo_zero_unpaired`` has z = 0 and reads no such answers.
    """

    title: ClassVar = "Kahneman-Tversky Optimization"
    paper: ClassVar = "arXiv 2402.01306, eqs. 7 and 8; apo_zero_unpaired: arXiv 2408.06266, APO-zero without pairs"
    equation: ClassVar = (
        "d = log pi(y|x) - log pi_ref(y|x);  z = max(0, mean of d over mismatched answers), no gradient;  "
        "desirable: desirable_weight (1 - sigmoid(beta (d - z))),  "
        "undesirable: undesirable_weight (1 - sigmoid(beta (z - d)));  apo_zero_unpaired: z = 0"
    )
    when: ClassVar = (
        "When answers are marked good or bad one by one, such as thumbs up and down. Where good and bad answers to one "
        "prompt stand side by side, dpo uses more of what they say."
    )

    pulls: ClassVar = "by row weight * beta * s * (1 - s), s = sigmoid(beta * (d - z)): desirable up, others down"

    form: Annotated[
        Literal["kto", "apo_zero_unpaired"], Field(description="with a reference point z, or with z = 0")
    ] = "kto"
    beta: Annotated[float, Field(gt=0, description="larger stays closer to the reference")] = 0.1
    desirable_weight: Annotated[float, Field(gt=0, description="weight of desirable answers")] = 1.0
    undesirable_weight: Annotated[float, Field(gt=0, description="weight of undesirable answers")] = 1.0

    @property
    def branches(self) -> tuple[str, ...]:
        return ("desirable", "undesirable") + (("mismatch",) if self.form == "kto" else ())

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def compares_pairs(self) -> bool:
        return True

    @property
    def coupled(self) -> str | None:
        if self.form != "kto":
            return None
        return "the reference point z is a mean over the micro-batch, so the loss depends on the micro-batch's rows"

    def balance(self, rows: Mapping[str, int]) -> str:
        desirable, undesirable = rows["desirable"], rows["undesirable"]
        if not desirable or not undesirable:
            only = "desirable" if desirable else "undesirable"
            return f"all rows are {only}, so nothing is set against them: add rows with the other label"
        ratio = self.desirable_weight * desirable / (self.undesirable_weight * undesirable)
        if 0.99 <= ratio <= 1.34:  # rounding of the weights that are named below stays inside
            return ""
        scale = self.undesirable_weight * undesirable / desirable
        return (
            f"{desirable:,} desirable rows of weight {self.desirable_weight:g} count {ratio:.2f} times as much as "
            f"{undesirable:,} undesirable rows of weight {self.undesirable_weight:g}, and the paper recommends 1 to "
            f"1.33 times: set desirable_weight between {scale:.3g} and {scale * 4 / 3:.3g}"
        )

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        assert reference is not None
        desirable, undesirable = (policy.sum(b) - reference.sum(b) for b in ("desirable", "undesirable"))
        z, metrics = self._reference_point(policy, reference)
        # 1 - sigmoid(x) as sigmoid(-x), which keeps its digits where it is small
        good = Term((self.beta * (z - desirable)).sigmoid(), weight=self.desirable_weight)
        bad = Term((self.beta * (undesirable - z)).sigmoid(), weight=self.undesirable_weight)
        metrics |= self._metrics(desirable.detach(), undesirable.detach(), policy)
        return Terms((good, bad), metrics)

    def _reference_point(
        self, policy: Scores, reference: Scores
    ) -> tuple[Tensor | float, dict[str, tuple[Tensor, Tensor]]]:
        """z in nats, and its metric."""
        if self.form != "kto":
            return 0.0, {}
        ratios = (policy.sum("mismatch") - reference.sum("mismatch")).detach()
        count = ratios.numel()
        # a micro-batch without rows, which keeps ranks in step, has z = 0 and not 0 / 0
        z = (ratios.sum() / max(count, 1)).clamp(min=0)
        return z, {"kto/z": (z, z.new_full((), float(count > 0)))}

    def _metrics(self, desirable: Tensor, undesirable: Tensor, policy: Scores) -> dict[str, tuple[Tensor, Tensor]]:
        """Rewards and log-probs of either side. The margin is a mean over micro-batches that have both sides."""
        metrics = {}
        for name, ratios, branch in (("chosen", desirable, "desirable"), ("rejected", undesirable, "undesirable")):
            count = ratios.new_full((), float(ratios.numel()))
            metrics[f"rewards/{name}"] = (self.beta * ratios.sum(), count)
            metrics[f"logps/{name}"] = (policy.sum(branch).detach().sum(), count)
        both = float(desirable.numel() > 0 and undesirable.numel() > 0)
        (up, n_up), (down, n_down) = metrics["rewards/chosen"], metrics["rewards/rejected"]
        margin = both * (up / n_up.clamp(min=1) - down / n_down.clamp(min=1))
        return metrics | {"rewards/margins": (margin, margin.new_full((), both))}
