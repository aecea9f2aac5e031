"""At the first batch: is the reference what the policy is, and how far does rounding move its log-probs?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.layout import Example, Tree, TreeBatch, pack
from align.engine.scores import Scores
from align.errors import UserError
from align.trainers.coverage import Coverage

NOTICED = 0.05  # share of a margin of 1 from which rounding is worth a cure


@dataclass(frozen=True)
class StartReading:
    """What the first batch showed.

    Attributes:
        gap: mean distance of policy and reference, in nats per token.
        noise: mean distance of an answer's log-prob to what it is in another pack, in nats; stored reference rows come
            from other packs, and are compared too.
        margin: ``noise`` in units of the objective's margin; None where it has no one scale.
    """

    gap: float
    noise: float
    margin: float | None

    def sentence(self, coverage: Coverage | None, *, stores: bool) -> str:
        """One line for people, with the cure where rounding is no longer small."""
        rows = "" if coverage is None else f"{coverage.stored:,} rows stored, {coverage.computed:,} computed; "
        share = "" if self.margin is None else f" ({self.margin:.2g} of a margin)"
        line = f"reference: {rows}same row in another pack differs by {self.noise:.2g} nats per answer{share}"
        if not stores or self.margin is None or self.margin <= NOTICED:
            return line
        return (
            f"{line}. That is much: compute in float32 (model.dtype: float32, train.bf16: false), or set "
            "reference.store: false, so that policy and reference are rounded alike."
        )

    def to_json(self, coverage: Coverage | None) -> dict[str, float | int | None]:
        """The same for ``metrics.jsonl``."""
        counts = {} if coverage is None else {"rows_stored": coverage.stored, "rows_computed": coverage.computed}
        return {**counts, "gap_per_token": self.gap, "noise_per_answer": self.noise, "noise_of_margin": self.margin}


def compare_at_start(trainer: Any, model: nn.Module, batch: TreeBatch) -> StartReading:
    """Compare the reference's rows of a batch with the policy's own, in this pack and in others.

    Every rank calls it with a batch of its own; it takes three forwards, or four where the reference is computed.

    Raises:
        UserError: where they differ by more than rounding.
    """
    assert trainer.reference is not None
    batch = batch.only(trainer.reference.branches)
    missing = trainer.needs_reference_pass([batch])[0]
    was_training = model.training
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        live = trainer.engine(model, batch)
        elsewhere = _in_other_packs(trainer, model, batch)
    model.train(was_training)
    autocast = trainer.accelerator.autocast
    reference = trainer.reference.scores(model, batch, compute=missing, keep=False, autocast=autocast)
    # a dummy batch has tokens of its own, which no store holds
    real = float(batch.units["examples"] > 0)
    logp, theirs = live.tokens["logp"], reference.tokens["logp"]
    answers = _per_sequence(live, logp)
    away = torch.stack(((answers - elsewhere).abs(), (answers - _per_sequence(live, theirs)).abs())).sum(1)
    counts = away.new_tensor([float(len(logp)), float(len(answers))])
    sums = torch.stack(((logp - theirs).abs().sum(), theirs.abs().sum(), *away, *counts))
    distance, size, moved, stored, tokens, sequences = trainer.sum_over_ranks(sums * real).tolist()
    gap = distance / max(tokens, 1.0)
    # the same rows computed twice agree (almost) exactly; stored ones come from other packs, which round otherwise
    rounding = torch.finfo(compute_dtype(trainer)).eps * (1 + size / max(tokens, 1.0))
    allowed = max(1e-4, rounding / 4 if missing else 4 * rounding)
    if not gap <= allowed:
        source = "the reference store" if not missing else f"the reference (strategy {trainer.reference.strategy})"
        cure = (
            "Remove the store's folder and start again."
            if not missing
            else "Use reference.strategy: copy, or start from the model that the reference should be."
        )
        raise UserError(
            f"At the start {source} differs from the policy by {gap:.2e} nats per token "
            f"(at most {allowed:.1e} is rounding), so it is not what the policy was at the start. {cure}"
        )
    noise = max(moved, stored) / max(sequences, 1.0)
    scale = trainer.objective.margin_scale
    return StartReading(gap, noise, None if scale is None else scale * noise)


def _in_other_packs(trainer: Any, model: nn.Module, batch: TreeBatch) -> Tensor:
    """Log-probs [S] of the batch's answers, every other one in a pack of its own and each behind its own prompt."""
    sequences = batch.branches() if batch.units["examples"] else []
    values = batch.targets.new_zeros(len(batch.lengths), dtype=torch.float32)
    for first in (0, 1):
        rows = [Example((Tree(tree.prompt, (branch,)),)) for tree, branch in sequences[first::2]]
        other = pack(rows, feed_last=batch.feeds_last).to(batch.targets.device)
        scores = trainer.engine(model, other)
        if rows:
            values[first::2] = _per_sequence(scores, scores.tokens["logp"]).float()
    return values


def _per_sequence(scores: Scores, logp: Tensor) -> Tensor:
    """Sums [S] of per-token values [N]."""
    return logp.new_zeros(scores.lengths.shape[0]).index_add(0, scores.owner, logp)


def compute_dtype(trainer: Any) -> torch.dtype:
    """What the trainer's forwards compute in."""
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision)
    return mixed or next(p.dtype for p in trainer.model.parameters() if p.is_floating_point())
