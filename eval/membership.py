"""What membership and memorisation scores read of a model, token by token, and the scores of one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from align.engine.layout import Branch, Example, Tree, pack
from align.engine.reads import ArgmaxHit, Entropy, LogProb, Read
from align.engine.scoring import causal_model
from align.errors import UserError
from align.eval.memorization import min_k, min_k_plus_plus, zlib_score

if TYPE_CHECKING:
    from align.models.subject import Subject


@dataclass(frozen=True)
class LogProbVariance(Read):
    """Variance of log p(v) for v drawn from p, in nats squared."""

    name: ClassVar[str] = "logp_variance"

    def chunk(self, logits: Tensor, target: Tensor, reference_logits: Tensor | None) -> Tensor:
        logp = logits.log_softmax(-1)
        p = logp.exp()
        # around the mean: the difference of two squares would leave rounding where the variance is small
        return (p * (logp - (p * logp).sum(-1, keepdim=True)).square()).sum(-1)


TOKEN_READS: tuple[Read, ...] = (LogProb(), ArgmaxHit(), Entropy(), LogProbVariance())


def mean_loss(values: Mapping[str, np.ndarray]) -> float:
    """Mean negative log-likelihood of all tokens of a text, the end token too; nats per token."""
    return float(-values["logp"].mean())


def attack_scores(values: Mapping[str, np.ndarray], text: str, kept: int) -> dict[str, float]:
    """Scores of one text by the names of open-unlearning's entries; the higher, the less likely it was trained on.

    ``values`` are what ``TOKEN_READS`` saw [T]. Loss and zlib take all tokens, min-k and min-k++ the first ``kept``.
    """
    logps, entropies, variances = (values[name][:kept] for name in ("logp", "entropy", "logp_variance"))
    loss = mean_loss(values)
    return {
        "mia_loss": loss,
        "mia_zlib": zlib_score(loss, text),
        "mia_min_k": min_k(logps),
        "mia_min_k_plus_plus": min_k_plus_plus(logps, entropies, variances),
    }


def gradient_norms(
    subject: Subject, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], kept: Sequence[int]
) -> np.ndarray:
    """For each row the 2-norm of the gradient of its mean token loss, averaged over the model's parameter tensors [n].

    ``kept`` counts the reply's tokens that are in the loss. One backward pass a row: slow. Only for a model that lies
    whole on each process. Raises ``UserError`` for one that does not.
    """
    if subject.engine.sharded:
        raise UserError("Gradient norms need a model that is not sharded: measure the saved model, in one process.")
    # without its wrappers, which would begin to exchange gradients
    model = causal_model(subject.model)
    parameters = list(model.parameters())
    flags = [p.requires_grad for p in parameters]
    was_training = model.training
    model.eval()
    found: list[tuple[int, float]] = []
    try:
        for p in parameters:
            p.requires_grad_(p.is_floating_point())
        wanted = [p for p in parameters if p.requires_grad]
        for row in range(subject.rank, len(prompts), subject.world):
            branch = Branch("reply", replies[row], [1] * kept[row] + [0] * (len(replies[row]) - kept[row]))
            batch = pack([Example((Tree(prompts[row], (branch,)),), row)]).to(subject.device)
            with torch.enable_grad(), subject.autocast():
                loss = -subject.engine(model, batch).tokens["logp"].mean()
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            norms = [_norm(g) for g in gradients if g is not None]
            found.append((row, float(torch.stack(norms).mean())))
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
        model.train(was_training)
    return np.array(subject.in_order(found, len(prompts)))


def _norm(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
