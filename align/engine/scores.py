"""Per-token scores with the addresses of the sequences they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from align.engine.head import ReferenceHead


@dataclass(frozen=True)
class Scores:
    """Per-token values of one micro-batch under one model.

    ``tokens`` maps a read's name to values [N], one per target token; ``owner`` [N] says which sequence a token belongs
    to; ``sequences`` maps a branch name to the ids of its sequences, [B] in the order of the examples; ``lengths`` [S]
    counts target tokens per sequence; ``places`` maps a branch name to the places of its tokens among all, [n].
    """

    tokens: Mapping[str, Tensor]
    owner: Tensor
    sequences: Mapping[str, Tensor]
    lengths: Tensor
    aux_loss: Tensor | None = None  # load-balancing loss of a mixture of experts, already times its coefficient
    head: ReferenceHead | None = None  # kept for reads of this model's distributions
    anchors: Mapping[str, Tensor] = field(default_factory=dict)  # [S]: log-probs that the rows brought along, by name
    places: Mapping[str, Tensor] = field(default_factory=dict)
    running: Mapping[str, Tensor] = field(default_factory=dict)  # means over past steps, as the trainer keeps them, []
    values: Mapping[str, Tensor] = field(default_factory=dict)  # [B]: numbers of the rows; nan where a row has none

    def sum(self, branch: str, read: str = "logp") -> Tensor:
        """Sum of a read over the target tokens of ``branch``, [B]; for ``logp`` in nats, EOS in, prompt out."""
        return self.total(branch, self.tokens[read])

    def total(self, branch: str, values: Tensor) -> Tensor:
        """Sum of per-token ``values`` [N] over the target tokens of ``branch``, [B]."""
        totals = values.new_zeros(self.lengths.shape[0]).index_add(0, self.owner, values)
        return totals[self.sequences[branch]]

    def count(self, branch: str) -> Tensor:
        """Target tokens of ``branch``, [B], in the dtype of the scores."""
        values = next(iter(self.tokens.values()))
        return self.lengths[self.sequences[branch]].to(values.dtype)

    def mean(self, branch: str, read: str = "logp") -> Tensor:
        """Mean of a read over the target tokens of ``branch``, [B]; nats per token for ``logp``."""
        return self.sum(branch, read) / self.count(branch).clamp(min=1)

    def of(self, branch: str, read: str = "logp") -> Tensor:
        """Values of a read at every target token of ``branch``, flat, [n]."""
        return self.tokens[read].index_select(0, self.places[branch])

    def of_sequence(self, sequence: Tensor | int, read: str = "logp") -> Tensor:
        """Values of a read at the target tokens of one sequence, [T_i]."""
        return self.tokens[read][self.owner == sequence]

    def score(self, branch: str) -> Tensor:
        """Scores of ``branch`` by a reward model, [B]."""
        return self.tokens["score"][self.sequences[branch]]

    def value(self, name: str, like: Tensor, *, missing: float) -> Tensor:
        """A number of each row, [B] in the type of ``like`` [B]; ``missing`` for rows without."""
        if name not in self.values:
            return torch.full_like(like, missing)
        return self.values[name].to(like.dtype).nan_to_num(nan=missing)

    def anchor(self, branch: str, name: str) -> Tensor:
        """Log-prob of ``branch`` under the model ``name``, as its rows bring it along; [B] in nats."""
        return self._anchor(name)[self.sequences[branch]]

    def anchored(self, name: str) -> Scores:
        """Scores of which only sums are right: the whole log-prob under ``name`` on the first token of a sequence."""
        anchors = self._anchor(name)
        logp = anchors.new_zeros(len(self.owner))
        if len(logp):
            # a sequence without targets has no first token, and adds nothing to somebody else's
            starts = (self.lengths.cumsum(0) - self.lengths).clamp(max=len(logp) - 1)
            logp = logp.index_add(0, starts, torch.where(self.lengths > 0, anchors, 0))
        return Scores({"logp": logp}, self.owner, self.sequences, self.lengths, places=self.places)

    def _anchor(self, name: str) -> Tensor:
        """Anchors [S] under ``name``; nan where none has one, as in a micro-batch without examples."""
        if name in self.anchors:
            return self.anchors[name]
        return torch.full(self.lengths.shape, math.nan, device=self.owner.device)

    @classmethod
    def from_rows(cls, **branches: list[Tensor]) -> Scores:
        """Scores from lists of per-token log-probs, a tensor [T_i] per example and branch; for tests and notebooks."""
        names = list(branches)
        rows = [row for name in names for row in branches[name]]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        sequences, start = {}, 0
        for name in names:
            sequences[name] = torch.arange(start, start + len(branches[name]))
            start += len(branches[name])
        owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        places = {name: torch.isin(owner, ids).nonzero()[:, 0] for name, ids in sequences.items()}
        return cls({"logp": torch.cat(rows)}, owner, sequences, lengths, places=places)
