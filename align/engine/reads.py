"""What is read off the next-token distribution at each target.

A read is a value: a small frozen class whose ``chunk`` maps logits [n, V] to one float per token [n]. It is evaluated
inside a chunk of tokens and again in the backward pass, so whole logits never exist. Reads that one objective alone
needs stand beside that objective. Importing them imports no torch, so that a command can say what an objective needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Read:
    """Base of the reads of the vocabulary."""

    differentiable: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    @property
    def name(self) -> str:
        raise NotImplementedError

    def chunk(self, logits: Tensor, target: Tensor, reference_logits: Tensor | None) -> Tensor:
        """``logits`` float [n, V], ``target`` [n], ``reference_logits`` [n, V] or None; returns [n]."""
        raise NotImplementedError


@dataclass(frozen=True)
class LogProb(Read):
    """log p(target), in nats."""

    name: ClassVar[str] = "logp"

    def chunk(self, logits: Tensor, target: Tensor, reference_logits: Tensor | None) -> Tensor:
        return logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)


@dataclass(frozen=True)
class Entropy(Read):
    """Entropy of the next-token distribution, in nats."""

    name: ClassVar[str] = "entropy"

    def chunk(self, logits: Tensor, target: Tensor, reference_logits: Tensor | None) -> Tensor:
        logp = logits.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)


@dataclass(frozen=True)
class CollisionProbability(Read):
    """sum_v p(v)^2: the chance that two draws agree; carries no gradient, since it only weighs."""

    differentiable: ClassVar[bool] = False
    name: ClassVar[str] = "collision"

    def chunk(self, logits: Tensor, target: Tensor, reference_logits: Tensor | None) -> Tensor:
        return logits.softmax(-1).square().sum(-1)


@dataclass(frozen=True)
class ArgmaxHit(Read):
    """1 where the target is the most likely token, else 0; carries no gradient."""

    name: ClassVar[str] = "argmax_hit"
    differentiable: ClassVar[bool] = False

    def chunk(self, logits: Tensor, target: Tensor, reference_logits: Tensor | None) -> Tensor:
        return (logits.argmax(-1) == target).to(logits.dtype)


@dataclass(frozen=True)
class KLToReference(Read):
    """KL(reference || policy) (forward) or KL(policy || reference) (reverse) over the whole vocabulary, in nats."""

    direction: Literal["forward", "reverse"] = "forward"
    needs_reference: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"kl_{self.direction}"

    def chunk(self, logits: Tensor, target: Tensor, reference_logits: Tensor | None) -> Tensor:
        assert reference_logits is not None, "the reference's logits are needed for a KL read"
        policy, reference = logits.log_softmax(-1), reference_logits.log_softmax(-1)
        if self.direction == "forward":
            policy, reference = reference, policy
        return (policy.exp() * (policy - reference)).sum(-1)


@dataclass(frozen=True)
class Hidden:
    """Hidden states [N, H] after ``layer`` (0 is the embedding, -1 the last, normalised one) for every target.

    ``at`` says where: at the position that predicts the target, or at the target itself, one further, which the last
    token of a branch has only in a batch made with ``feed_last``.
    """

    needs_reference: ClassVar[bool] = False

    layer: int = -1
    at: Literal["prediction", "target"] = "prediction"

    @property
    def name(self) -> str:
        return f"hidden_{self.layer}" if self.at == "prediction" else f"hidden_{self.layer}_at_target"


@dataclass(frozen=True)
class Score:
    """The value of a sequence-classification head [S] at the position of each sequence's last target token itself.

    The last token is found by length, never by comparing with a pad id.
    """

    needs_reference: ClassVar[bool] = False
    name: ClassVar[str] = "score"


@dataclass(frozen=True)
class HeadGradients:
    """How the gradients of two branches' log-probs lie to each other, for every example, [B, 3].

    With g the gradient of a whole answer's log-prob with respect to the head's weight: ``|g_a|^2``, ``|g_b|^2`` and
    ``<g_a, g_b>``. It carries no gradient itself.
    """

    needs_reference: ClassVar[bool] = False
    name: ClassVar[str] = "head_gradients"

    branches: tuple[str, str] = ("chosen", "rejected")


AnyRead = Read | Hidden | Score | HeadGradients


def feeds_last(reads: Iterable[AnyRead]) -> bool:
    """Whether a batch for these reads must have the last token of each branch in its row."""
    return any(isinstance(r, Score) or (isinstance(r, Hidden) and r.at == "target") for r in reads)


def evaluate(reads: tuple[Read, ...], logits: Tensor, target: Tensor, reference_logits: Tensor | None) -> Tensor:
    """All reads at once, [R, n]."""
    import torch

    return torch.stack([read.chunk(logits, target, reference_logits) for read in reads])
