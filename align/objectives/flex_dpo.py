"""Flex-DPO: one beta for each side of the pair (arXiv 2406.07327)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from align.objectives.base import Terms, pair_metrics
from align.objectives.entanglement import Products
from align.objectives.pairwise import Diverging

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.reads import AnyRead
    from align.engine.scores import Scores

FIRST = 0.8  # beta_minus / beta_plus before anything is measured: the paper's best beta_minus of 0.08 at 0.1
LEAST, MOST = 0.1, 1.0  # and what it is kept between: below, it only imitates; above, chosen answers fall sooner


@dataclass(frozen=True)
class FlexDPO(Diverging):
    """DPO whose pull on the rejected answer is set apart from its pull on the chosen one.

    With unequal betas the loss depends on absolute log-ratios, and so on length: the offset that both sides share no
    longer cancels.

    ``beta_minus: auto`` is ours, not the paper's: beta_plus times a mean over past steps of |g_w| / |g_l|, the ratio at
    which both sides of a pair weigh alike (``entanglement.Products``), over the head's weight.
    """

    title: ClassVar = "Flex-DPO (3D-properties)"
    paper: ClassVar = (
        "arXiv 2406.07327; the paper does not print the loss, this is the natural reading of its two betas; "
        "beta_minus: auto is ours, after the interval of 2410.13828"
    )
    equation: ClassVar = (
        "m = beta_plus d_w - beta_minus d_l with d = log pi(y|x) - log pi_ref(y|x);  loss = -log sigmoid(m)"
    )
    when: ClassVar = (
        "When DPO drives rejected answers down too fast (drastic drop) and chosen ones with them (degradation). Keep "
        "beta_plus and lower beta_minus a little; much lower turns it into imitation of the chosen answers."
    )

    m: ClassVar = "beta_plus * d_w - beta_minus * d_l"
    pulls: ClassVar = ("beta_plus * s", "beta_minus * s")

    beta_plus: Annotated[float, Field(gt=0, description="scale of the chosen answer's log-ratio")] = 0.1
    beta_minus: Annotated[
        Annotated[float, Field(ge=0)] | Literal["auto"],
        Field(
            description="scale of the rejected answer's log-ratio; auto: beta_plus times |g_w| / |g_l|, gradients of "
            "both answers over the head, by a mean over past steps"
        ),
    ] = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_minus == "auto" and self.calibrate:
            raise ValueError(
                "beta_minus: auto and calibrate both balance the two sides, from the same gradients. Set beta_minus to "
                "a number, or remove calibrate."
            )

    @property
    def margin_scale(self) -> float:
        return max(self.beta_plus, MOST * self.beta_plus if self.beta_minus == "auto" else self.beta_minus)

    @property
    def own_scales(self) -> bool:
        return self.beta_plus != self.beta_minus

    @property
    def bare(self) -> Self:
        return super().bare.settled({})

    def settled(self, running: Mapping[str, Tensor]) -> Self:
        return replace(self, beta_minus=float(self._beta_minus(running)))

    def reads(self) -> tuple[AnyRead, ...]:
        from align.engine.reads import HeadGradients

        return (*super().reads(), HeadGradients()) if self.beta_minus == "auto" else super().reads()

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        import torch

        terms = super().terms(policy, reference)
        if self.beta_minus != "auto":
            return terms
        log_ratio = Products(*policy.tokens["head_gradients"].detach().unbind(1)).log_ratio
        known = log_ratio.isfinite()
        mean = (torch.where(known, log_ratio, 0.0).sum(), known.to(log_ratio).sum())
        count = log_ratio.new_full((), float(log_ratio.numel()))
        now = count * self._beta_minus(policy.running)
        return replace(terms, metrics={**terms.metrics, "flex/beta_minus": (now, count)}, running={"log_ratio": mean})

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.beta_plus * chosen - self._beta_minus(policy.running) * rejected)

    def metrics(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Mapping[str, tuple[Tensor, Tensor]]:
        gap = chosen - rejected if self.own_scales else None
        return pair_metrics(self.beta_plus * chosen, self._beta_minus(policy.running) * rejected, policy, gap=gap)

    def _beta_minus(self, running: Mapping[str, Tensor]) -> Tensor | float:
        """A number, or [] of what past steps measured."""
        if self.beta_minus != "auto":
            return self.beta_minus
        if "log_ratio" not in running:
            return FIRST * self.beta_plus
        # float32, as the scores are; a mean of no pair at all is not a number
        ratio = running["log_ratio"].exp().nan_to_num(FIRST).clamp(LEAST, MOST)
        return self.beta_plus * ratio.float()
