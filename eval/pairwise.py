"""Two models on the same prompts, compared by a judge that sees every pair of answers in both orders.

As MT-Bench compares pairs (Zheng et al. 2023, arXiv 2306.05685): an answer wins where the judge prefers it in both
orders, and all else is a tie. A judge that scores sees one answer at a time, so for it there are no orders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.data.tokens.preparation import plural
from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.eval.alpaca_judge import put_to
from align.eval.result import limited, mark
from align.judges.judge import CompareJudge, Judging
from align.probes.nulls import not_above
from align.report.thresholds import FEW_PAIRS
from align.stats import Interval, bootstrap_mean, wilson

_SEED = 0  # of bootstrap intervals
Verdict = tuple[float | None, float | None]  # P(the first model's answer is better), shown first and shown second


@dataclass(frozen=True)
class PairwiseResult:
    """What a judge says of model ``a`` beside model ``b``.

    Attributes:
        wins, losses, ties: of ``a``, over the prompts that were judged.
        win_rate: of ``a``, ties as half a win; Wilson's interval, 95 %.
        preference: mean probability that the answer of ``a`` is better, over both orders.
        bias: how much likelier than even the judge prefers what it is shown first; None where there are no orders.
        agreement: share of pairs of different answers for which both orders name the same winner; None as above.
        longest: the win rate that a judge would give to ``a`` that always takes the longer answer.
        characters: mean lengths of the answers of ``a`` and ``b``.
        notes: what was left out, and why.
        limit: prompts of a trial, which is no result.
    """

    a: str
    b: str
    judge: str
    wins: int
    losses: int
    ties: int
    win_rate: Interval
    preference: Interval
    bias: Interval | None
    agreement: Interval | None
    longest: float
    characters: tuple[float, float]
    notes: tuple[str, ...] = ()
    limit: int | None = None

    @property
    def verdict(self) -> str:
        """Whether a difference is shown, and of what kind; with a sentence where length alone would do as well."""
        rate = self.win_rate
        if rate.n < FEW_PAIRS:
            return f"too few to say: {plural(rate.n, 'prompt')} judged, and {FEW_PAIRS} are the least"
        if rate.low <= 0.5 <= rate.high:
            return "not shown: the interval of the win rate holds 0.5"
        better, worse = (self.a, self.b) if rate.low > 0.5 else (self.b, self.a)
        said = f"{better} is preferred to {worse}"
        if rate.low <= 0.5:  # the same rate, seen from the other side
            rate = Interval(1 - rate.value, 1 - rate.high, 1 - rate.low, rate.n)
        longest = self.longest if better == self.a else 1 - self.longest
        doubt = not_above("the win rate", rate.value, rate, {"longest": longest, "shortest": 1 - longest})
        return f"{said}; {doubt}" if doubt else said

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        spans = {name: getattr(self, name) for name in ("win_rate", "preference", "bias", "agreement")}
        return {
            "a": self.a,
            "b": self.b,
            "judge": self.judge,
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            **{name: None if span is None else span.to_json() for name, span in spans.items()},
            "longest": self.longest,
            "characters": list(self.characters),
            "verdict": self.verdict,
            "notes": list(self.notes),
            **limited(self.limit),
        }

    def lines(self) -> list[str]:
        """For the terminal."""
        rows = [
            ("win rate of A", _spanned(self.win_rate)),
            ("wins, losses, ties", f"{self.wins:,}, {self.losses:,}, {self.ties:,} of {self.win_rate.n:,}"),
            ("mean preference for A", _spanned(self.preference)),
        ]
        if self.agreement is not None:
            rows.append(("same winner in both orders", _spanned(self.agreement)))
        if self.bias is not None:
            rows.append(("likelier when shown first", _spanned(self.bias)))
        rows += [
            ("win rate by length alone", f"{self.longest:.3f}"),
            ("characters of A and B", f"{self.characters[0]:,.0f} and {self.characters[1]:,.0f}"),
        ]
        width = max(len(name) for name, _ in rows)
        out = [] if self.limit is None else [mark(self.limit)]
        out += [f"A  {self.a}", f"B  {self.b}", f"judged by {self.judge}", ""]
        out += [f"  {name:<{width}}  {text}" for name, text in rows]
        return [*out, "", self.verdict, *self.notes]


def _spanned(span: Interval) -> str:
    return f"{span.value:.3f} [{span.low:.3f}, {span.high:.3f}], n {span.n:,}"


def compare(judge: Judging, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> list[Verdict]:
    """Of each pair of answers the probability that ``a`` is better, shown first and shown second.

    Equal answers are even, and no one is asked. Of a judge that scores the higher score wins, in both places alike.
    None where the judge said nothing that could be read.
    """
    out: list[Verdict] = [(0.5, 0.5)] * len(prompts)
    differ = [i for i in range(len(prompts)) if a[i] != b[i]]
    if not differ:
        return out
    asked = put_to(judge, [prompts[i] for i in differ])
    ours, theirs = [a[i] for i in differ], [b[i] for i in differ]
    if isinstance(judge, CompareJudge):
        found = judge.prefer_first([*asked, *asked], [*ours, *theirs], [*theirs, *ours])
        first, second = found[: len(differ)], [1 - value for value in found[len(differ) :]]
    else:
        scores = zip(judge.score(asked, ours), judge.score(asked, theirs), strict=True)
        first = second = [float(mine > other) + (mine == other) / 2 for mine, other in scores]
    for i, *pair in zip(differ, first, second, strict=True):
        before, after = (None if math.isnan(value) else value for value in pair)
        out[i] = (before, after)
    return out


def outcome(verdict: Verdict) -> float | None:
    """1 where both orders name ``a``, 0 where both name ``b``, else 1/2; None where one of them was not judged."""
    first, second = verdict
    if first is None or second is None:
        return None
    return 1.0 if min(first, second) > 0.5 else 0.0 if max(first, second) < 0.5 else 0.5


def figures(
    names: tuple[str, str],
    judge: Judging,
    verdicts: Sequence[Verdict],
    a: Sequence[str],
    b: Sequence[str],
    *,
    notes: Sequence[str] = (),
    limit: int | None = None,
) -> PairwiseResult:
    """All figures of the verdicts on answers ``a`` and ``b``. Raises ``UserError`` where nothing was judged."""
    known = [i for i, verdict in enumerate(verdicts) if outcome(verdict) is not None]
    if not known:
        raise UserError(f"None of {plural(len(verdicts), 'pair')} was judged: {judge.name} named no winner anywhere.")
    said = list(notes)
    if left := len(verdicts) - len(known):
        said.append(f"{plural(left, 'prompt')} without a verdict that could be read: in no figure")
    outcomes = np.array([outcome(verdicts[i]) for i in known], dtype=float)
    pairs = np.array([verdicts[i] for i in known], dtype=float)
    gaps = [len(a[i]) - len(b[i]) for i in known]
    bias = agreement = None
    if isinstance(judge, CompareJudge) and (asked := np.array([a[i] != b[i] for i in known])).any():
        first, second = pairs[asked].T
        bias = bootstrap_mean((first - second) / 2, _SEED)
        agreement = wilson(int(((first - 0.5) * (second - 0.5) > 0).sum()), int(asked.sum()))
    return PairwiseResult(
        *names,
        judge.name,
        int((outcomes == 1).sum()),
        int((outcomes == 0).sum()),
        int((outcomes == 0.5).sum()),
        wilson(float(outcomes.sum()), len(known)),
        bootstrap_mean(pairs.mean(axis=1), _SEED).within(0.0, 1.0),
        bias,
        agreement,
        float(np.mean([(gap > 0) + (gap == 0) / 2 for gap in gaps])),
        (float(np.mean([len(a[i]) for i in known])), float(np.mean([len(b[i]) for i in known]))),
        tuple(said),
        limit,
    )
