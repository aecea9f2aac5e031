"""What pairwise losses share: how an answer is measured against the reference, and what weighs a pair.

A loss of pairs is then a formula of two numbers for each pair, one of the chosen and one of the rejected answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from align.errors import UserError
from align.objectives.base import Objective, Term, Terms, pair_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.reads import AnyRead
    from align.engine.scores import Scores

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

_ALPHA = 0.5  # of alpha_divergence, where none is given


@dataclass(frozen=True, kw_only=True)
class Pairwise(Objective):
    """A loss that sets a chosen answer against a rejected one. Subclasses give ``terms``."""

    calibrate: Annotated[
        Literal[True, False, "per_pair"],
        Field(
            description="scale the gradients of both sides so that they weigh alike: true on the mean of past steps, "
            "per_pair in each pair (pairwise-normalised); the loss's value stays"
        ),
    ] = False

    @property
    def bare(self) -> Self:
        return replace(super().bare, calibrate=False)

    def reads(self) -> tuple[AnyRead, ...]:
        from align.engine.reads import HeadGradients

        return (*super().reads(), HeadGradients()) if self.calibrate else super().reads()

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        import torch

        if not self.calibrate or not torch.is_grad_enabled():
            return self.terms(policy, reference)
        from align.objectives.calibration import calibrated

        return calibrated(self.terms, policy, reference, per_pair=self.calibrate == "per_pair")

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        """The loss as its formula has it; arguments as of ``__call__``."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Referenced(Pairwise):
    """A loss of the two log-ratios to the reference. Subclasses give ``losses`` and a ``beta``."""

    ld_alpha: Annotated[
        float | None,
        Field(ge=0, le=1, description="weight of an answer's tokens beyond the shorter one's length (LD-DPO); none: 1"),
    ] = None
    use_weighting: Annotated[
        bool, Field(description="weigh pairs by how likely the policy is to write both answers (WPO)")
    ] = False

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def by_token(self) -> bool:
        return self.ld_alpha is not None

    @property
    def bare(self) -> Self:
        return replace(super().bare, ld_alpha=None, use_weighting=False)

    def reads(self) -> tuple[AnyRead, ...]:
        from align.engine.reads import CollisionProbability

        return (*super().reads(), CollisionProbability()) if self.use_weighting else super().reads()

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        assert reference is not None
        chosen, rejected = self.measured(policy, reference)
        losses = self.losses(chosen, rejected, policy)
        if losses.shape != chosen.shape:
            raise UserError(
                f"{type(self).__name__}.losses gave values of shape {list(losses.shape)}; expected the loss of each "
                f"pair, {list(chosen.shape)}, neither summed nor averaged."
            )
        if self.use_weighting:
            losses = losses * _likeliness(policy, "chosen") * _likeliness(policy, "rejected")
        return Terms((Term(losses),), self.metrics(chosen, rejected, policy))

    def measured(self, policy: Scores, reference: Scores) -> tuple[Tensor, Tensor]:
        """What stands for either answer of a pair in the loss: its log-ratio d, [B] in nats."""
        chosen, rejected = (
            self.answer(policy, policy, branch) - self.answer(reference, policy, branch)
            for branch in ("chosen", "rejected")
        )
        return chosen, rejected

    def answer(self, scores: Scores, policy: Scores, branch: str) -> Tensor:
        """Log-prob of an answer under ``scores``, [B] in nats, tokens weighed by ``ld_alpha``."""
        if self.ld_alpha is None:
            return scores.sum(branch)
        return _discounted(scores, policy, branch, self.ld_alpha)

    def losses(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Tensor:
        """The loss of each pair [B], from what ``measured`` gives."""
        raise NotImplementedError

    def metrics(self, chosen: Tensor, rejected: Tensor, policy: Scores) -> Mapping[str, tuple[Tensor, Tensor]]:
        """What is logged, as (sum, count), from what ``measured`` gives."""
        beta = self.beta  # type: ignore[attr-defined]
        return pair_metrics(beta * chosen, beta * rejected, policy)


@dataclass(frozen=True, kw_only=True)
class Diverging(Referenced):
    """A loss of the difference of implicit rewards, where another divergence to the reference may take KL's place.

    With u = pi(y|x) / pi_ref(y|x) of a whole answer, the reward is beta f'(u) up to a constant (f-DPO, arXiv
    2309.16240); f'(u) = log u is that of the reverse KL, and DPO.
    """

    f_divergence_type: Annotated[
        Divergence, Field(description="divergence to the reference; reverse_kl is DPO's own (f-DPO)")
    ] = "reverse_kl"
    f_alpha_divergence_coef: Annotated[
        float, Field(description="alpha of alpha_divergence; 1 is the reverse KL again")
    ] = _ALPHA

    def __post_init__(self) -> None:
        if self.f_alpha_divergence_coef != _ALPHA and self.f_divergence_type != "alpha_divergence":
            raise ValueError(
                f"f_alpha_divergence_coef has no effect with f_divergence_type {self.f_divergence_type}. Set "
                "f_divergence_type: alpha_divergence, or remove the coefficient."
            )

    def measured(self, policy: Scores, reference: Scores) -> tuple[Tensor, Tensor]:
        """f'(u) of either answer, [B]; its log-ratio d in nats for the reverse KL."""
        chosen, rejected = super().measured(policy, reference)
        return self._slope(chosen), self._slope(rejected)

    def _slope(self, d: Tensor) -> Tensor:
        """f'(u) at u = exp(d), up to a constant, as TRL has it."""
        from torch.nn.functional import logsigmoid

        if self.f_divergence_type == "js_divergence":
            return math.log(2) + logsigmoid(d)
        if self.f_divergence_type == "forward_kl":
            return powered(d, -1.0)
        if self.f_divergence_type == "alpha_divergence":
            return powered(d, self.f_alpha_divergence_coef - 1)
        return d


def powered(x: Tensor, power: float) -> Tensor:
    """(u^power - 1) / power of u = exp(x), which is x at power 0; of slope 1 at x = 0 for every power."""
    if abs(power) < 1e-6:
        return x
    return ((power * x).clamp(max=80).exp() - 1) / power  # float32 has no exp(89)


def logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid(m) where a share ``label_smoothing`` of the labels is taken to be flipped (conservative DPO)."""
    from torch.nn.functional import logsigmoid

    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def per_token(ratio: Tensor, policy: Scores, branch: str) -> Tensor:
    """``ratio`` [B] divided by the target tokens of each answer."""
    return ratio / policy.count(branch).clamp(min=1)


def _likeliness(policy: Scores, branch: str) -> Tensor:
    """How likely a policy is to write an answer, [B], no gradient: WPO's w (arXiv 2406.11827, eq. 2).

    exp of the mean over tokens of log pi(y_t) - log sum_v pi(v)^2, so 1 where the policy is as sure as it can be.
    """
    aligned = policy.tokens["logp"] - policy.tokens["collision"].log()
    return (policy.total(branch, aligned.detach()) / policy.count(branch).clamp(min=1)).exp()


def _discounted(scores: Scores, policy: Scores, branch: str, alpha: float) -> Tensor:
    """Log-prob of an answer [B] whose tokens beyond the length of the pair's shorter answer count ``alpha`` times."""
    import torch

    shorter = torch.minimum(*(policy.lengths[policy.sequences[b]] for b in ("chosen", "rejected")))
    limits = torch.zeros_like(scores.lengths).index_copy(0, scores.sequences[branch], shorter)
    starts = (scores.lengths.cumsum(0) - scores.lengths)[scores.owner]
    places = torch.arange(len(scores.owner), device=scores.owner.device) - starts
    logp = scores.tokens["logp"]
    return scores.total(branch, torch.where(places < limits[scores.owner], logp, alpha * logp))
