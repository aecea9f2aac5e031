"""What the gradients of a pair's two log-probs are like, and how hard a loss pulls on either: pair by pair.

A loss changes by -pull_w with log pi(y_w|x) and by pull_l with log pi(y_l|x). With g_w and g_l the gradients of these
log-probs, a step of gradient descent of size lr on the pair changes them, to first order, by

    lr (pull_w |g_w|^2 - pull_l <g_w, g_l>)    and    lr (pull_w <g_w, g_l> - pull_l |g_l|^2),

so answers whose gradients are alike move together: gradient entanglement (arXiv 2410.13828, with pulls of any loss in
place of DPO's equal ones).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores
    from align.objectives.base import Term, Terms

    Loss = Callable[[Scores, Scores | None], Terms]

SIDES = ("chosen", "rejected")
CASES = ("ideal", "both_up", "both_down", "reversed", "still")


class Products(NamedTuple):
    """Products of g_w and g_l, [B] each, over whichever weights they are gradients of.

    A column of ``HeadGradients`` each: ``Products(*read.unbind(1))``.
    """

    chosen_square: Tensor  # |g_w|^2
    rejected_square: Tensor  # |g_l|^2
    inner: Tensor  # <g_w, g_l>

    @property
    def cosine(self) -> Tensor:
        return self.inner / (self.chosen_square.sqrt() * self.rejected_square.sqrt())

    @property
    def log_ratio(self) -> Tensor:
        """log |g_w| / |g_l|: at pull_l / pull_w = |g_w| / |g_l| both sides weigh alike."""
        return (self.chosen_square.sqrt() / self.rejected_square.sqrt()).log()

    @property
    def band(self) -> tuple[Tensor, Tensor]:
        """Between which values of pull_l / pull_w the chosen answer rises and the rejected one falls.

        (<g_w, g_l> / |g_l|^2, |g_w|^2 / <g_w, g_l>), whose geometric mean is |g_w| / |g_l|; it is empty only where the
        gradients are parallel. Without a common direction (a product of 0 or less) every ratio serves: (0, inf).
        """
        import torch

        apart = self.inner <= 0
        shared = torch.where(apart, torch.ones_like(self.inner), self.inner)
        low = torch.where(apart, 0.0, shared / self.rejected_square)
        return low, torch.where(apart, torch.inf, self.chosen_square / shared)

    def changes(self, pull_w: Tensor, pull_l: Tensor) -> tuple[Tensor, Tensor]:
        """By how much a step of gradient descent on the pair alone changes both log-probs, in nats per unit of lr."""
        chosen = pull_w * self.chosen_square - pull_l * self.inner
        return chosen, pull_w * self.inner - pull_l * self.rejected_square

    def cases(self, pull_w: Tensor, pull_l: Tensor) -> dict[str, Tensor]:
        """Which of ``CASES`` such a step is, [B] of bool each.

        ``ideal``: chosen up and rejected down. ``reversed``, chosen down and rejected up, cannot be where both pulls
        go the usual way. ``still``: neither moves, as where a hinge has let go.
        """
        chosen, rejected = self.changes(pull_w, pull_l)
        up, down = chosen > 0, rejected < 0
        turned = (chosen < 0) & (rejected > 0)
        return dict(zip(CASES, (up & down, up & ~down, ~up & down, turned, ~up & ~down & ~turned), strict=True))


def pulls_of(loss: Loss, policy: Scores, reference: Scores | None) -> tuple[Tensor, Tensor]:
    """pull_w and pull_l of every pair, [B] each: by autograd of the loss with respect to the two log-probs."""
    import torch

    logp = policy.tokens["logp"].detach()
    with torch.enable_grad():
        shifts = [policy.sum(side).detach().new_zeros(len(policy.sequences[side])).requires_grad_() for side in SIDES]
        for side, shift in zip(SIDES, shifts, strict=True):  # a shift of the sum, dealt out over the tokens
            each = shift / policy.count(side).clamp(min=1)
            logp = logp + logp.new_zeros(len(policy.lengths)).index_put((policy.sequences[side],), each)[policy.owner]
        terms = loss(replace(policy, tokens={**policy.tokens, "logp": logp}), reference)
        total = sum(t.weight * t.losses.sum() * _share(t, policy) for t in terms.losses)
    on_chosen, on_rejected = torch.autograd.grad(total, shifts, materialize_grads=True)  # type: ignore[arg-type]
    return -on_chosen, on_rejected


def _share(term: Term, policy: Scores) -> Tensor | float:
    """What a term is divided by less than one of pairs is, as far as this micro-batch shows it."""
    kind, _, branch = term.unit.partition(":")
    if kind != "tokens" or "+" in term.unit:
        return 1.0
    counts = policy.count(branch)
    return counts.numel() / counts.sum().clamp(min=1)
