"""The condition of ``watch.stop_when``: a small grammar, read by hand and never evaluated as code.

    condition  = comparison { ("and" | "or") comparison }       "and" binds closer than "or"
    comparison = metric ("<" | "<=" | ">" | ">=") value
    value      = number [ "*" "start" ] | "start"

``start`` is the same metric at step 0. Imports no torch.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)|(?P<word>[A-Za-z_]\w*)|(?P<sign><=|>=|<|>|\*))"
)
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KEYWORDS = ("and", "or", "start")

# what an evaluation during training reads: metrics of the suite by the names that recipes use
METRICS: Mapping[str, str] = {
    "utility": "model_utility",
    "utility_retain": "utility_retain",
    "forget_quality": "forget_quality",
    "forget_truth_ratio": "forget_truth_ratio",
    "forget_probability": "forget_Q_A_Prob",
    "forget_rouge": "forget_Q_A_ROUGE",
}


@dataclass(frozen=True)
class Comparison:
    """``metric sign factor`` or, with ``relative``, ``metric sign factor * start``."""

    metric: str
    sign: str
    factor: float
    relative: bool

    def __str__(self) -> str:
        value = f"{self.factor:g}" + (" * start" if self.relative else "")
        return f"{self.metric} {self.sign} {value}"

    def holds(self, now: Mapping[str, float], start: Mapping[str, float]) -> bool:
        """Whether it is true; a metric that is missing or not finite makes it false."""
        value = now.get(self.metric, math.nan)
        limit = self.factor * (start.get(self.metric, math.nan) if self.relative else 1.0)
        return _COMPARE[self.sign](value, limit)


@dataclass(frozen=True)
class StopRule:
    """A condition on metrics: it holds where all comparisons of one of the ``alternatives`` do."""

    alternatives: tuple[tuple[Comparison, ...], ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that it looks at."""
        return tuple(dict.fromkeys(c.metric for group in self.alternatives for c in group))

    def met(self, now: Mapping[str, float], start: Mapping[str, float]) -> str | None:
        """The comparisons that made it true, with their values, or None."""
        for group in self.alternatives:
            if all(c.holds(now, start) for c in group):
                return " and ".join(f"{c} ({c.metric} is {now[c.metric]:.4g})" for c in group)
        return None

    @classmethod
    def parse(cls, text: str) -> StopRule:
        """Read a condition. Raises ValueError with a sentence that says where it goes wrong."""
        tokens = _tokens(text)
        alternatives: list[tuple[Comparison, ...]] = []
        group: list[Comparison] = []
        while True:
            group.append(_comparison(tokens))
            if not tokens:
                return cls((*alternatives, tuple(group)))
            joint = tokens.pop(0)
            if joint not in ("and", "or"):
                raise ValueError(f"expected 'and', 'or' or the end, got {joint!r}; {_FORM}")
            if joint == "or":
                alternatives.append(tuple(group))
                group = []


_FORM = "it is read as METRIC < NUMBER, or METRIC < NUMBER * start, such as utility < 0.9 * start."


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"cannot read {text[at:].strip()!r}; {_FORM}")
        found.append(match.group().strip())
        at = match.end()
    return found


def _comparison(tokens: list[str]) -> Comparison:
    metric, sign, value = (tokens.pop(0) if tokens else "the end" for _ in range(3))
    if not metric.isidentifier() or metric in _KEYWORDS:
        raise ValueError(f"expected the name of a metric, got {metric!r}; {_FORM}")
    if sign not in _COMPARE:
        raise ValueError(f"expected <, <=, > or >= after {metric}, got {sign!r}; {_FORM}")
    if value == "start":
        return Comparison(metric, sign, 1.0, True)
    if not (value[0].isdigit() or value[0] == "."):
        raise ValueError(f"expected a number or 'start' after {metric} {sign}, got {value!r}; {_FORM}")
    if tokens[:1] != ["*"]:
        return Comparison(metric, sign, float(value), False)
    tokens.pop(0)
    if tokens[:1] != ["start"]:
        raise ValueError(
            f"expected 'start' after {metric} {sign} {value} *, got {(tokens or ['the end'])[0]!r}; {_FORM}"
        )
    tokens.pop(0)
    return Comparison(metric, sign, float(value), True)
