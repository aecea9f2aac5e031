"""AlpacaEval: how often a judge prefers a model's answers to a reference's, and how often it would at equal length.

Source: Dubois et al. 2024 (arXiv 2404.04475); the settings of AlpacaEval 2. Only a whole set that the official judge
has judged against the official reference is called AlpacaEval 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from align.data.tokens.preparation import plural
from align.errors import UserError
from align.eval.alpaca_figures import Anchors, LengthControlled, WinRate, length_controlled, win_rate
from align.eval.alpaca_rows import JUDGE, REFERENCE, Annotations, official, official_count
from align.eval.result import limited, mark
from align.report.thresholds import FEW_PAIRS
from align.stats import Interval, finite

_LC = "length_controlled_winrate"


@dataclass(frozen=True)
class AlpacaResult:
    """Figures of one model, in percent.

    Attributes:
        wins: over all rows that were judged.
        controlled: at equal length; None where ``missing`` says why not.
        average_length: characters of the model's answers, cut to a whole number as the leaderboard does.
        unjudged: rows without an answer of the judge that could be read; they are in no figure but the length.
        official: whether set, judge and reference are those of AlpacaEval 2.
        of_set: how many of the official instructions there are.
        limit: the number of instructions of a trial, whose figures are no result.
    """

    model: str
    reference: str
    judge: str
    wins: WinRate
    average_length: int
    unjudged: int
    official: bool
    of_set: int
    controlled: LengthControlled | None = None
    missing: str = ""
    position_bias: tuple[float, float] | None = None
    agreement: float | None = None
    notes: tuple[str, ...] = field(default=())
    limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the names of the leaderboard's columns."""
        controlled, bias = self.controlled, self.position_bias
        return {
            "benchmark": self.title,
            "model": self.model,
            "reference": self.reference,
            "judge": self.judge,
            "official": self.official,
            **self.wins._asdict(),
            _LC: None if controlled is None else controlled.win_rate,
            "lc_standard_error": None if controlled is None else controlled.standard_error,
            "avg_length": self.average_length,
            "unjudged": self.unjudged,
            "instructions": self.of_set,
            "position_bias": None if bias is None else finite(bias[0]),
            "position_bias_standard_error": None if bias is None else finite(bias[1]),
            "agreement": self.agreement,
            "missing": {} if controlled is not None else {_LC: self.missing},
            "notes": list(self.notes),
            **limited(self.limit),
        }

    @property
    def title(self) -> str:
        """What these figures may be called."""
        if self.official:
            return "AlpacaEval 2"
        return f"AlpacaEval's instructions, judged by {self.judge or 'a judge that is not named'}: not AlpacaEval 2"

    def lines(self) -> list[str]:
        """For the terminal."""
        wins, controlled = self.wins, self.controlled
        out = [] if self.limit is None else [mark(self.limit)]
        out += [self.title, f"{self.model or 'the model'} against {self.reference or 'the reference'}", ""]
        rows = []
        if controlled is not None:
            span = interval(controlled.win_rate, controlled.standard_error, wins.n_total)
            rows.append(("length-controlled win rate", _spanned(controlled.win_rate, span)))
        rows += [
            ("win rate", _spanned(wins.win_rate, interval(wins.win_rate, wins.standard_error, wins.n_total))),
            ("discrete win rate", f"{wins.discrete_win_rate:.2f} %"),
            ("wins, losses, ties", f"{wins.n_wins:,}, {wins.n_wins_base:,}, {wins.n_draws:,} of {wins.n_total:,}"),
            ("average length", f"{self.average_length:,} characters"),
        ]
        if self.position_bias is not None and math.isfinite(self.position_bias[0]):
            bias, error = self.position_bias
            span = Interval(bias, bias - 1.96 * error, bias + 1.96 * error, wins.n_total) if error else None
            rows.append(("likelier when shown first", _spanned(bias, span, "points")))
        if self.agreement is not None:
            rows.append(("same winner in both orders", f"{100 * self.agreement:.0f} %"))
        width = max(len(name) for name, _ in rows)
        out += [f"  {name:<{width}}  {text}" for name, text in rows]
        if controlled is None:
            out += ["", f"no length-controlled win rate: {self.missing}"]
        return out + (["", *self.notes] if self.notes else [])


def interval(percent: float, error: float, n: int) -> Interval | None:
    """1.96 standard errors to both sides of a win rate of ``n`` rows, within 0 and 100.

    None where all rows are alike: their spread says nothing of the next row.
    """
    half = 1.96 * error
    return Interval(percent, percent - half, percent + half, n).within(0.0, 100.0) if error else None


def _spanned(value: float, span: Interval | None, unit: str = "%") -> str:
    return f"{value:.2f} {unit}" + ("" if span is None else f" [{span.low:.1f}, {span.high:.1f}]")


def figures(
    found: Annotations,
    difficulty: dict[int, float] | str,
    anchors: Anchors | str,
    *,
    subset: bool = False,
    limit: int | None = None,
) -> AlpacaResult:
    """All figures of annotations.

    Args:
        difficulty, anchors: as read, or why they are not there.
        subset: whether the length-controlled win rate of a part of the set is wanted; it is marked.

    Raises:
        UserError: where fewer than two rows were judged.
    """
    judged = found.preference[~np.isnan(found.preference)]
    if len(judged) < 2:
        raise UserError(
            f"{plural(len(judged), 'row')} of {len(found.preference):,} was judged, and a win rate needs two at least."
        )
    numbers = [official(instruction) for instruction in found.instructions]
    whole = None not in numbers and len(numbers) == official_count()
    missing = _why_not(found, numbers, difficulty, anchors, whole or subset)
    controlled, notes = None, []
    if not missing:
        assert isinstance(difficulty, dict)
        assert isinstance(anchors, Anchors)
        controlled = _controlled(found, [difficulty[number] for number in numbers if number is not None], anchors)
        notes = _doubts(found)
        if not whole:
            notes.append(f"fitted to {len(numbers):,} of {official_count():,} instructions: no figure of a leaderboard")
    if unjudged := len(found.preference) - len(judged):
        notes.append(f"{plural(unjudged, 'row')} without an answer of the judge that could be read: in no win rate")
    if len(judged) < FEW_PAIRS:
        notes.append(f"too few to say: {plural(len(judged), 'instruction')} judged, and {FEW_PAIRS} are the least")
    return AlpacaResult(
        found.model,
        found.reference,
        found.judge,
        win_rate(judged),
        int(found.lengths.mean()),
        unjudged,
        whole and found.judge == JUDGE and found.reference == REFERENCE,
        len(numbers) - numbers.count(None),
        controlled,
        missing,
        notes=tuple(notes),
        limit=limit,
    )


def _why_not(
    found: Annotations,
    numbers: list[int | None],
    difficulty: dict[int, float] | str,
    anchors: Anchors | str,
    allowed: bool,
) -> str:
    """Why there is no length-controlled win rate; empty where there is one."""
    if foreign := numbers.count(None):
        return f"{plural(foreign, 'instruction')} of {len(numbers):,} not of AlpacaEval, so with no known difficulty"
    if not allowed:
        return (
            f"these are {len(numbers):,} of {official_count():,} instructions, and it is meant for all of them "
            "(--subset fits it all the same, and marks it)"
        )
    if isinstance(difficulty, str):
        return f"it needs the difficulties of the instructions. {difficulty}"
    if isinstance(anchors, str):
        return f"it needs the anchor models. {anchors}"
    if absent := sum(number not in difficulty for number in numbers):
        return f"the difficulties lack {plural(absent, 'instruction')} of {len(numbers):,}"
    return ""


def _controlled(found: Annotations, difficulty: list[float], anchors: Anchors) -> LengthControlled:
    if found.model and found.model == found.reference:
        return LengthControlled(50.0, 0.0, (0.0, 0.0, 0.0))  # by definition
    # rows are held out by their place, so a file in another order would give other numbers
    order = sorted(range(len(difficulty)), key=lambda i: official(found.instructions[i]) or 0)
    columns = (found.preference, found.lengths, found.reference_lengths, np.array(difficulty))
    return length_controlled(*(column[order] for column in columns), anchors)


def _doubts(found: Annotations) -> list[str]:
    """What the fit takes from another judge or another reference than these."""
    named = (("judge", found.judge, JUDGE), ("reference", found.reference, REFERENCE))
    return [
        f"difficulties and anchors are of the {what} {theirs}, and this is {own}"
        for what, own, theirs in named
        if own and own != theirs
    ]
