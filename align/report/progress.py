"""The terminal during training: one line per log step in fixed columns, and warnings. Imports no torch.

``chosen``, ``rejected`` and ``drift`` are changes since the start on the probe's held-out pairs; loss, margin and
accuracy are the training batches' since the last line. ``own`` is the accuracy on the objective's own scales.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.objectives.base import Objective

HEADER_EVERY = 25
MISSING = "-"

# column, key of the record ("probe/x": of the reading in it), width, blanks before it, decimals
Columns = tuple[tuple[str, str, int, int, int], ...]
_SPEED: Columns = (
    ("lr", "learning_rate", 7, 3, 1),
    ("tok/s", "tokens_per_second", 6, 2, 0),
    ("left", "seconds_left", 4, 3, 0),
)
PAIRS: Columns = (
    ("step", "step", 5, 0, 0),
    ("loss", "loss", 6, 3, 4),
    ("margin", "rewards/margins", 6, 3, 3),
    ("accuracy", "rewards/accuracies", 8, 3, 2),
    ("chosen", "probe/chosen", 6, 3, 1),
    ("rejected", "probe/rejected", 8, 3, 1),
    ("drift", "probe/drift", 5, 3, 2),
    *_SPEED,
)
_OWN: Columns = (("own", "rewards/own_accuracies", 4, 3, 2),)
# of an objective that compares no pairs
LIKELIHOOD: Columns = (("step", "step", 5, 0, 0), ("loss", "loss", 6, 3, 4), *_SPEED)
# mean token probability of the forgotten answers, and nats per token of the retained ones, in the training batches
FORGETTING: Columns = (
    ("step", "step", 5, 0, 0),
    ("loss", "loss", 6, 3, 4),
    ("p(forget)", "p/forget", 9, 3, 3),
    ("nll(retain)", "nll/retain", 11, 3, 3),
    *_SPEED,
)
# with fresh samples beside the pairs: the KL to the reference on them, in nats per sample
HYBRID: Columns = (*PAIRS[:4], ("kl", "kl/sampled", 6, 3, 2), *PAIRS[4:])
# of labelled answers, which have no accuracy; z is the reference point in nats
LABELLED: Columns = (*PAIRS[:3], ("z", "kto/z", 6, 3, 2), *PAIRS[4:])
# of a reward model: mean scores of both sides
SCORES: Columns = (
    *PAIRS[:4],
    ("chosen", "rewards/chosen", 6, 3, 2),
    ("rejected", "rewards/rejected", 8, 3, 2),
    *_SPEED,
)
# the judge's scores of all samples and of those kept, and how alike the kept ones are
SURVIVORS: Columns = (
    ("step", "step", 5, 0, 0),
    ("loss", "loss", 6, 3, 4),
    ("reward", "reward/samples", 6, 3, 2),
    ("kept", "reward/kept", 6, 3, 2),
    ("alike", "similarity/survivors", 5, 3, 2),
    ("kl", "kl_forward/survivor", 6, 3, 3),
    ("tokens", "samples/tokens", 6, 3, 0),
    *_SPEED,
)


def columns_for(objective: Objective) -> Columns:
    """The columns that suit an objective: what it does not have would be a dash in every line."""
    branches = set(objective.branches)
    if objective.scores_answers:
        return SCORES
    if "survivor" in branches:
        return SURVIVORS
    if {"forget", "alternate"} & branches:
        return FORGETTING
    if not objective.compares_pairs:
        return LIKELIHOOD
    if "desirable" in branches:
        return LABELLED if "mismatch" in branches else tuple(column for column in LABELLED if column[0] != "z")
    columns = HYBRID if "sample" in branches else PAIRS
    return (*columns[:4], *_OWN, *columns[4:]) if objective.own_scales else columns


class Progress:
    """Prints what ``metrics.jsonl`` gets, for people.

    ``echo`` takes one line of text. On a terminal the header returns every 25 lines, in faint type, and warnings are
    yellow (not where NO_COLOR is set); elsewhere the output is plain, with one header. ``total_steps`` widens the first
    column where it must. ``chosen_drop_nats`` is the limit of the warning about chosen answers.
    """

    def __init__(
        self,
        *,
        echo: Callable[[str], Any] = print,
        terminal: bool | None = None,
        total_steps: int = 0,
        chosen_drop_nats: float = 20.0,
        columns: Columns = PAIRS,
    ) -> None:
        self.echo, self.columns = echo, columns
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        self.step_width = max(5, len(str(total_steps)))
        self.watch = DropWatch(chosen_drop_nats)
        self._lines = 0

    def log(self, record: Mapping[str, Any]) -> None:
        """One record of ``metrics.jsonl``: a line, and a warning where there is cause."""
        if self._lines == 0 or (self.terminal and self._lines % HEADER_EVERY == 0):
            self.echo(self._style(header(self.step_width, self.columns), "2"))
        self._lines += 1
        self.echo(line(record, self.step_width, self.columns))
        if (warning := self.watch.check(_value(record, "probe/chosen"))) is not None:
            self.warn(warning)

    def warn(self, text: str) -> None:
        """A warning under the line that it belongs to."""
        self.echo(self._style(" " * (self.step_width + 2) + "! " + text, "33"))

    def _style(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.terminal and not os.environ.get("NO_COLOR") else text


class DropWatch:
    """Says once that chosen answers lost more than ``limit`` nats since the start, and again whenever that doubled."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._next = limit

    def check(self, chosen: float | None) -> str | None:
        """A sentence, or None. ``chosen`` is the mean change of the chosen answers' log-prob in nats."""
        if chosen is None or not math.isfinite(chosen) or chosen >= 0 or -chosen < self._next:
            return None
        self._next = -2 * chosen
        return (
            f"chosen answers lost {-chosen:.1f} nats since the start (limit {self.limit:g}): align explain suppression"
        )


def header(step_width: int = 5, columns: Columns = PAIRS) -> str:
    """The column names."""
    cells = []
    for name, _, width, blanks, _ in columns:
        width = step_width if name == "step" else width
        cells.append(" " * blanks + (name.ljust(width) if name == "lr" else name.rjust(width)))
    return "".join(cells)


def line(record: Mapping[str, Any], step_width: int = 5, columns: Columns = PAIRS) -> str:
    """One record in the columns of ``header``; what is missing is a dash."""
    cells = []
    for name, key, width, blanks, decimals in columns:
        width = step_width if name == "step" else width
        # a cell that is too wide eats its blanks before it moves its neighbours
        cells.append(_cell(name, _value(record, key), width, decimals).rjust(blanks + width))
    return "".join(cells)


def clock(seconds: float) -> str:
    """Time left in four characters or so: 45s, 12m, 1:41 (hours and minutes)."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}"


def duration(seconds: float) -> str:
    """Time taken, for a sentence: 45 s, 12 min, 1 h 52 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def fit(value: float, width: int, decimals: int) -> str:
    """``value`` in at most ``width`` characters: fewer decimals where it is large, then powers of ten."""
    if not math.isfinite(value):
        return str(value)
    for places in range(decimals, -1, -1):
        rounded = round(value, places) + 0.0  # no minus before zeros
        if len(text := f"{rounded:.{places}f}") <= width:
            return text
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _cell(name: str, value: float | None, width: int, decimals: int) -> str:
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if name == "left":
        return clock(value)
    if name == "lr":
        return f"{value:.{decimals}e}"
    if name == "tok/s" and value < 1e5 - 0.5:
        return f"{value:,.0f}"
    return fit(value, width, decimals)


def _value(record: Mapping[str, Any], key: str) -> float | None:
    """A number of the record, or of its probe reading, where an interval stands for its estimate."""
    probe = key.removeprefix("probe/")
    value = record.get(key) if probe == key else (record.get("probe") or {}).get(probe)
    value = value.get("value") if isinstance(value, Mapping) else value
    return None if value is None else float(value)
