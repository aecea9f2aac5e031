"""Representation misdirection for unlearning (arXiv 2403.03218)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from align.objectives.base import Objective, Term, Terms, branch_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.reads import AnyRead, Hidden
    from align.engine.scores import Scores


@dataclass(frozen=True)
class RMU(Objective):
    """Hidden states of forget answers are moved to one random direction, those of retained ones held in place.

    Both are read at the answer's tokens themselves, where the model has taken them in. Which parameters train is the
    model's part of a recipe; the authors train a few layers below ``layer`` alone.
    """

    title: ClassVar = "Representation misdirection for unlearning"
    paper: ClassVar = "arXiv 2403.03218; the form of open-unlearning"
    equation: ClassVar = (
        "h_t: hidden state after the layer at answer token t, d its width, n tokens, u uniform on [0, 1)^d over its "
        "norm;  forget: sum_t |h_t - steering u|^2 / (d n),  retain: sum_t |h_t - h_ref,t|^2 / (d n)"
    )
    when: ClassVar = (
        "To spoil what the model knows about a field (WMDP) rather than single answers. Layer and steering must fit "
        "the model: steering is the norm that hidden states are moved to."
    )

    pulls: ClassVar = "moves hidden states, not log-probs"

    layer: Annotated[int, Field(ge=0, description="the layer whose output is moved, the first being 0")] = 7
    steering: Annotated[float, Field(ge=0, description="norm of the vector that forget states are moved to")] = 2.0
    seed: Annotated[int, Field(ge=0, description="draws the vector's direction, once for the run")] = 0
    retain_weight: Annotated[
        float, Field(ge=0, description="times the retain term; 0 needs no reference and no retain rows")
    ] = 1.0

    @property
    def branches(self) -> tuple[str, ...]:
        return ("forget", "retain") if self.retain_weight else ("forget",)

    @property
    def needs_reference(self) -> bool:
        return self.retain_weight > 0

    @property
    def reference_branches(self) -> tuple[str, ...]:
        return ("retain",) if self.retain_weight else ()

    def reads(self) -> tuple[AnyRead, ...]:
        from align.engine.reads import LogProb

        return (LogProb(), self._hidden)

    @property
    def _hidden(self) -> Hidden:
        from align.engine.reads import Hidden

        return Hidden(self.layer + 1, at="target")  # 0 is the embedding there

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        read = self._hidden.name
        states = _wide(policy.of("forget", read))
        forget = _per_token(policy, "forget", states - self.steering * self.direction(states))
        metrics = branch_metrics(policy, *self.branches)
        count = metrics["logps/forget"][1]
        metrics["rmu/forget"] = (forget.detach().sum(), count)
        # layers above take no part, but data-parallel ranks wait for a gradient of every parameter
        terms = [Term(forget + 0 * policy.sum("forget"))]
        if self.retain_weight:
            assert reference is not None
            # the reference may have scored this branch alone, so tokens are matched within it
            gap = _wide(policy.of("retain", read)) - _wide(reference.of("retain", read))
            retain = _per_token(policy, "retain", gap)
            metrics["rmu/retain"] = (retain.detach().sum(), count)
            terms.append(Term(retain, weight=self.retain_weight))
        return Terms(tuple(terms), metrics)

    def direction(self, like: Tensor) -> Tensor:
        """The unit vector u [H] for states ``like`` [N, H]: a function of the seed and H, drawn on the CPU."""
        import torch

        u = torch.rand(like.shape[-1], generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return (u / u.norm()).to(like, non_blocking=True)


def _per_token(policy: Scores, branch: str, gap: Tensor) -> Tensor:
    """Mean over a sequence's target tokens and the states' width of squared gaps [n, H] of a branch's tokens, [B]."""
    import torch

    lengths = policy.lengths[policy.sequences[branch]]
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return gap.new_zeros(len(lengths)).index_add(0, owner, gap.square().mean(-1)) / lengths.clamp(min=1)


def _wide(states: Tensor) -> Tensor:
    """At least float32, since squares of small gaps are what counts."""
    import torch

    return states if states.dtype == torch.float64 else states.float()
