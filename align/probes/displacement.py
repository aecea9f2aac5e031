"""Where likelihood goes in training: the 3D-properties (arXiv 2406.07327) on a fixed set of held-out pairs.

The paper's own measurements on language models are task scores; the definitions here are operational ones, each stated
in ``docs/diagnostics.md``. Everything is float64 on the CPU, on a few hundred numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.engine.reads import LogProb
from align.engine.scores import Scores
from align.objectives.base import FRESH, Objective, WeightedSum
from align.objectives.own import failures_told
from align.probes.probe_set import OTHER_ROWS
from align.stats import Interval, bootstrap_mean, bootstrap_ratio, finite, wilson

SLOPE_WINDOW = 5  # readings that a slope is fitted to
RESAMPLES = 1999  # per interval and reading: about 20 ms for 64 pairs


@dataclass(frozen=True)
class ProbeScores:
    """Summed log-probs of the probe set under one model, in nats (EOS in, prompt out), and target-token counts.

    ``chosen``, ``rejected`` [n] belong to pairs; ``other`` [m] to answers that no pair names, or is None. Whatever
    dtype and device come in, float64 on the CPU is kept. Raises ValueError where shapes disagree.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    other: Tensor | None = None
    other_tokens: Tensor | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value is not None:
                # to the CPU first: some devices have no float64
                object.__setattr__(self, name, torch.as_tensor(value).detach().cpu().to(torch.float64))
        pair = (self.chosen, self.rejected, self.chosen_tokens, self.rejected_tokens)
        if self.chosen.ndim != 1 or len({x.shape for x in pair}) > 1 or self.chosen.numel() == 0:
            raise ValueError("probe scores of pairs must be flat, of one length and not empty")
        if (self.other is None) != (self.other_tokens is None):
            raise ValueError("log-probs and token counts of other answers come together")
        if self.other is not None and self.other_tokens is not None and self.other.shape != self.other_tokens.shape:
            raise ValueError("log-probs and token counts of other answers must have one length")

    @classmethod
    def from_scores(cls, scores: Scores) -> ProbeScores:
        """Of one micro-batch; the branch ``other`` is optional."""
        columns: dict[str, Any] = {}
        for branch in ("chosen", "rejected", "other"):
            if branch in scores.sequences:
                columns[branch] = scores.sum(branch)
                columns[f"{branch}_tokens"] = scores.lengths[scores.sequences[branch]]
        return cls(**columns)

    @classmethod
    def cat(cls, parts: Sequence[ProbeScores]) -> ProbeScores:
        """Micro-batches after each other; ``other`` is kept only where every part has it."""
        columns: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            values = [getattr(part, name) for part in parts]
            columns[name] = None if any(value is None for value in values) else torch.cat(values)
        return cls(**columns)

    def to_json(self) -> dict[str, list[float] | None]:
        """Plain lists, exact in JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: None if value is None else value.tolist() for name, value in values.items()}


@dataclass(frozen=True)
class ProbeReading:
    """What the probe found at one step. Changes are since the start, in nats; slopes are nats per optimizer step.

    ``against`` says what ``below``, ``margin`` and ``accuracy`` compare with: the reference policy, or the start where
    no reference log-probs were given. ``margin`` is mean d_w - d_l in nats; ``reward_margin`` is the objective's own.
    ``accuracy`` is the share of pairs with d_w > d_l, or what an objective without a reference compares in its place
    (simpo: mean log-probs); None for objectives that compare no pairs. ``own_accuracy`` is that of the objective's
    margin where it has scales of its own. ``longer`` is the share of pairs whose chosen answer has more tokens. Ties
    count as half. Intervals are 95 %, over pairs.
    """

    step: int
    n: int
    against: str
    chosen: Interval
    rejected: Interval
    chosen_per_token: float
    rejected_per_token: float
    chosen_slope: float | None
    rejected_slope: float | None
    margin_slope: float | None
    drop_ratio: float | None  # |rejected| / |chosen|
    below: Interval  # share of pairs whose chosen answer is below the reference, d_w < 0
    margin: Interval
    reward_margin: float | None
    accuracy: Interval | None
    own_accuracy: Interval | None
    longer: float
    drift: Interval | None  # D3: change of the other answers, nats per token
    drift_of: str
    chosen_length: float  # mean target tokens
    rejected_length: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for ``metrics.jsonl``; what is not finite becomes null."""
        data: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Interval):
                value = value.to_json()
            elif isinstance(value, float):
                value = finite(value)
            data[name] = value
        return data


class Displacement:
    """Turns scores of the probe set into readings. The first call of ``read`` is the start, unless one was restored.

    ``reference`` holds the same pairs' log-probs under the reference policy; without it the start takes its place.
    ``objective`` gives the margin its own sense (betas per side, lengths); without one a margin is d_w - d_l.
    """

    def __init__(
        self,
        *,
        objective: Objective | None = None,
        reference: ProbeScores | None = None,
        other: str = OTHER_ROWS,
        seed: int = 0,
    ) -> None:
        self.objective, self.reference, self.other, self.seed = objective, reference, other, seed
        self.start: ProbeScores | None = None
        self._history: list[tuple[float, ...]] = []

    def read(self, step: int, now: ProbeScores) -> ProbeReading:
        """The reading of ``now`` at optimizer step ``step``. Raises ValueError where the start was of other pairs."""
        self.start = self.start or now
        start, reference = self.start, self.reference or self.start
        for earlier in (start, reference):
            _same_answers(earlier, now)
        chosen, rejected = now.chosen - start.chosen, now.rejected - start.rejected
        d_w, d_l = now.chosen - reference.chosen, now.rejected - reference.rejected
        own = None if self.objective is None else own_metrics(self.objective, now, reference)
        self._remember(step, chosen.mean().item(), rejected.mean().item(), (d_w - d_l).mean().item())
        return ProbeReading(
            step=step,
            n=chosen.numel(),
            against="start" if self.reference is None else "reference",
            chosen=self._mean(chosen),
            rejected=self._mean(rejected),
            chosen_per_token=(chosen.sum() / now.chosen_tokens.sum()).item(),
            rejected_per_token=(rejected.sum() / now.rejected_tokens.sum()).item(),
            chosen_slope=self._slope(1),
            rejected_slope=self._slope(2),
            margin_slope=self._slope(3),
            drop_ratio=_ratio(rejected.mean().abs().item(), chosen.mean().abs().item()),
            below=_share(-d_w, ties=0.0),
            margin=self._mean(d_w - d_l),
            reward_margin=None if own is None else own["margins"].mean().item(),
            accuracy=self._accuracy(d_w - d_l, own),
            own_accuracy=None if own is None or "own_accuracies" not in own else _mean_share(own, "own_accuracies"),
            longer=_share(now.chosen_tokens - now.rejected_tokens, ties=0.5).value,
            drift=self._drift(start, now),
            drift_of=self.other if now.other is not None else "",
            chosen_length=now.chosen_tokens.mean().item(),
            rejected_length=now.rejected_tokens.mean().item(),
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs so that "since the start" keeps its meaning, as plain JSON."""
        return {"start": None if self.start is None else self.start.to_json(), "history": self._history}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state`` gave."""
        self.start = None if state["start"] is None else ProbeScores(**state["start"])
        self._history = [tuple(point) for point in state["history"]]

    def _remember(self, *point: float) -> None:
        if not np.isfinite(point).all():
            return  # a slope through it would say nothing for the next readings
        kept = [earlier for earlier in self._history if earlier[0] < point[0]]  # a step read again replaces itself
        # all of them, since a resumed run goes back by more than the window
        self._history = [*kept, point]

    def _slope(self, column: int) -> float | None:
        return slope([(point[0], point[column]) for point in self._history[-SLOPE_WINDOW:]])

    def _accuracy(self, gap: Tensor, own: Mapping[str, Tensor] | None) -> Interval | None:
        if own is not None:
            return _mean_share(own, "accuracies")
        compares = self.objective is None or self.objective.compares_pairs
        return _share(gap, ties=0.5) if compares else None

    def _mean(self, values: Tensor) -> Interval:
        return bootstrap_mean(values.numpy(), self.seed, resamples=RESAMPLES)

    def _drift(self, start: ProbeScores, now: ProbeScores) -> Interval | None:
        if now.other is None or now.other_tokens is None or start.other is None:
            return None
        change = now.other - start.other
        return bootstrap_ratio(change.numpy(), now.other_tokens.numpy(), self.seed, resamples=RESAMPLES)


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope of (step, value) points; None for fewer than two different steps."""
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    if len(set(x.tolist())) < 2:
        return None
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))


def own_metrics(objective: Objective, now: ProbeScores, reference: ProbeScores) -> dict[str, Tensor] | None:
    """What the objective says of every pair, [n] each: ``margins``, ``accuracies`` and, with scales of its own,

    ``own_accuracies``; None where it compares no pairs. It is asked about one pair at a time, so what it reports here
    is what it reports in training. A sum of objectives answers with its first part that compares pairs.
    """
    if isinstance(objective, WeightedSum):
        answers = (own_metrics(part, now, reference) for part, _ in objective.parts)
        return next((answer for answer in answers if answer is not None), None)
    bare = objective.bare  # one token stands for each answer
    branches = set(bare.branches) - set(FRESH)
    if branches != {"chosen", "rejected"} or set(bare.reads()) != {LogProb()} or bare.anchors:
        return None  # it judges answers one by one, or reads what the probe does not measure
    with failures_told(objective):
        pairs = [bare(_pair(now, i), _pair(reference, i)).metrics for i in range(now.chosen.numel())]
    names = [name for name in pairs[0] if name in ("rewards/margins", "rewards/accuracies", "rewards/own_accuracies")]
    return {name.removeprefix("rewards/"): torch.stack([pair[name][0] for pair in pairs]) for name in names} or None


def _pair(scores: ProbeScores, i: int) -> Scores:
    # one token stands for each answer and carries its sum, while the lengths stay true: sums and means come out right
    logp = torch.stack([scores.chosen[i], scores.rejected[i]])
    lengths = torch.stack([scores.chosen_tokens[i], scores.rejected_tokens[i]]).long()
    sequences = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1])}
    sequences |= dict.fromkeys(FRESH, torch.empty(0, dtype=torch.long))  # none, for objectives that read them too
    return Scores({"logp": logp}, torch.tensor([0, 1]), sequences, lengths, places=sequences)


def _mean_share(own: Mapping[str, Tensor], name: str) -> Interval:
    """The share of pairs that are right by ``name``, each 0, 1/2 or 1; not a number where a margin is none."""
    hits = own[name].double() + 0 * own["margins"]
    if not hits.isfinite().all():
        return Interval(float("nan"), float("nan"), float("nan"), hits.numel())
    return wilson(hits.sum().item(), hits.numel())


def _share(values: Tensor, *, ties: float) -> Interval:
    if not values.isfinite().all():
        return Interval(float("nan"), float("nan"), float("nan"), values.numel())
    hits = (values > 0).sum().item() + ties * (values == 0).sum().item()
    return wilson(hits, values.numel())


def _ratio(top: float, bottom: float) -> float | None:
    return finite(top / bottom) if bottom > 0 else None


def _same_answers(earlier: ProbeScores, now: ProbeScores) -> None:
    names = ("chosen_tokens", "rejected_tokens", "other_tokens")
    for a, b in ((getattr(earlier, name), getattr(now, name)) for name in names):
        if a is not None and b is not None and not torch.equal(a, b):
            raise ValueError("the probe set changed: its answers have other lengths than at the start")
