"""What an objective says of the pairs of the probe set: margins, who is right, and what is left of its pull."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align.engine.reads import LogProb
from align.engine.scores import Scores
from align.objectives.base import FRESH, Objective, WeightedSum
from align.objectives.entanglement import pulls_of
from align.objectives.own import failures_told
from align.probes.scores import ProbeScores

_METRICS = ("rewards/margins", "rewards/accuracies", "rewards/own_accuracies")


def own_metrics(objective: Objective, now: ProbeScores, reference: ProbeScores) -> dict[str, Tensor] | None:
    """What the objective says of every pair, [n] each: ``margins``, ``accuracies`` and, with scales of its own,

    ``own_accuracies``; None where it compares no pairs. It is asked about one pair at a time, so what it reports here
    is what it reports in training. A sum of objectives answers with its first part that compares pairs.
    """
    bare = _comparing(objective)
    if bare is None:
        return None
    with failures_told(objective):
        each = ([i] for i in range(now.chosen.numel()))
        pairs = [bare(_scores(now, one), _scores(reference, one)).metrics for one in each]
    names = [name for name in pairs[0] if name in _METRICS]
    return {name.removeprefix("rewards/"): torch.stack([pair[name][0] for pair in pairs]) for name in names} or None


def pull_left(
    objective: Objective, now: ProbeScores, start: ProbeScores, reference: ProbeScores
) -> tuple[Tensor, Tensor] | None:
    """How hard the loss pulls on the rejected answer of every pair, now and at the start, [n] each.

    The quotient of the two is what is left of the training signal: for DPO and other losses of log sigmoid(m) it is
    s / s_0 with s = sigmoid(-m); for IPO it is the share of the way to the target margin that is still to go. Both
    numbers have a unit of their own, which the quotient does not. None where the objective compares no pairs or the
    pull on a pair depends on the other pairs.
    """
    bare = _comparing(objective)
    if bare is None or bare.coupled:
        return None
    rows = range(now.chosen.numel())
    with failures_told(objective):
        pulls = [pulls_of(bare, _scores(at, rows), _scores(reference, rows))[1] for at in (now, start)]
    return pulls[0], pulls[1]


def _comparing(objective: Objective) -> Objective | None:
    """The first part of an objective that compares pairs by what the probe measures, without options; None if none."""
    if isinstance(objective, WeightedSum):
        return next((part for whole, _ in objective.parts if (part := _comparing(whole)) is not None), None)
    bare = objective.bare  # one token stands for each answer
    branches = set(bare.branches) - set(FRESH)
    if branches != {"chosen", "rejected"} or set(bare.reads()) != {LogProb()} or bare.anchors:
        return None  # it judges answers one by one, or reads what the probe does not measure
    return bare


def _scores(scores: ProbeScores, rows: Sequence[int]) -> Scores:
    # one token stands for each answer and carries its sum, while the lengths stay true: sums and means come out right
    places, n = torch.tensor(rows), len(rows)
    logp = torch.cat([scores.chosen[places], scores.rejected[places]])
    lengths = torch.cat([scores.chosen_tokens[places], scores.rejected_tokens[places]]).long()
    sequences = {"chosen": torch.arange(n), "rejected": torch.arange(n, 2 * n)}
    sequences |= dict.fromkeys(FRESH, torch.empty(0, dtype=torch.long))  # none, for objectives that read them too
    return Scores({"logp": logp}, torch.arange(2 * n), sequences, lengths, places=sequences)
