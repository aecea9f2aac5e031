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

from align.objectives.base import Objective
from align.probes.margins import own_metrics, pull_left
from align.probes.probe_set import OTHER_ROWS
from align.probes.scores import ProbeScores
from align.stats import Interval, bootstrap_mean, bootstrap_ratio, finite, wilson

SLOPE_WINDOW = 5  # readings that a slope is fitted to
RESAMPLES = 1999  # per interval and reading: about 20 ms for 64 pairs
SPENT = 0.1  # a pair has taught what it can: less than this share of the pull on its rejected answer is left
UNSEEN = "samples that the starting policy drew at these prompts"


@dataclass(frozen=True)
class ProbeReading:
    """What the probe found at one step. Changes are since the start, in nats; slopes are nats per optimizer step.

    ``against`` says what ``below``, ``margin`` and ``accuracy`` compare with: the reference policy, or the start where
    no reference log-probs were given. ``margin`` is mean d_w - d_l in nats; ``reward_margin`` is the objective's own.
    ``accuracy`` is the share of pairs with d_w > d_l, or what an objective without a reference compares in its place
    (simpo: mean log-probs); None for objectives that compare no pairs. ``own_accuracy`` is that of the objective's
    margin where it has scales of its own. ``longer`` is the share of pairs whose chosen answer has more tokens. Ties
    count as half. ``drift`` is of samples of the starting policy where there are some, else of the borrowed answers,
    which ``drift_of`` says; ``borrowed`` is always of the latter, and ``borrowed_chosen`` of those among them that are
    chosen answers where they come from. Intervals are 95 %, over pairs or prompts.
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
    signal: Interval | None  # what is left of the pull on rejected answers at the start; see ``pull_left``
    spent: Interval | None  # share of pairs with less than SPENT of it left
    drift: Interval | None  # D3: change of answers that no pair names, nats per token
    drift_of: str
    borrowed: Interval | None
    borrowed_chosen: Interval | None
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
        seed: int = 0,
    ) -> None:
        self.objective, self.reference, self.seed = objective, reference, seed
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
        signal, spent = self._signal(now, start, reference)
        unseen, borrowed = self._change("unseen", start, now), self._change("other", start, now)
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
            signal=signal,
            spent=spent,
            drift=unseen or borrowed,
            drift_of=UNSEEN if unseen else OTHER_ROWS if borrowed else "",
            borrowed=borrowed,
            borrowed_chosen=self._change("other", start, now, slice(None, None, 2)),  # see ``with_other``
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

    def _change(self, name: str, start: ProbeScores, now: ProbeScores, rows: slice = slice(None)) -> Interval | None:
        """Change of answers that no pair names, in nats per token; None where they were not scored both times."""
        before, after, tokens = getattr(start, name), getattr(now, name), getattr(now, f"{name}_tokens")
        if before is None or after is None:
            return None
        change = (after - before)[rows].numpy()
        return bootstrap_ratio(change, tokens[rows].numpy(), self.seed, resamples=RESAMPLES)

    def _signal(
        self, now: ProbeScores, start: ProbeScores, reference: ProbeScores
    ) -> tuple[Interval | None, Interval | None]:
        pulls = None if self.objective is None else pull_left(self.objective, now, start, reference)
        if pulls is None or not (pulls[1] > 0).all():
            return None, None  # it is no training signal of a pair, or there was none to begin with
        left, first = pulls
        mean = bootstrap_ratio(left.numpy(), first.numpy(), self.seed, resamples=RESAMPLES)
        return mean, _share(SPENT * first - left, ties=0.0)


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope of (step, value) points; None for fewer than two different steps."""
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    if len(set(x.tolist())) < 2:
        return None
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))


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
    names = ("chosen_tokens", "rejected_tokens", "other_tokens", "unseen_tokens")
    for a, b in ((getattr(earlier, name), getattr(now, name)) for name in names):
        if a is not None and b is not None and not torch.equal(a, b):
            raise ValueError("the probe set changed: its answers have other lengths than at the start")
