"""The numbers that a run is judged by at its end, for the page, the model card and comparisons. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.report.record import RunRecord
from align.report.suites import main_values
from align.stats import Interval, bootstrap_mean, finite

PER_ANSWER, PER_TOKEN = "nats/answer", "nats/token"
_SEED = 0  # of bootstrap intervals
# of an unlearning suite: name, key of the reading, and where it is a mean over items their entry and column in the log
_FORGETTING = (
    ("forget quality (p-value)", "forget_quality", None),
    ("utility", "utility", None),
    ("utility on retained rows", "utility_retain", None),
    ("probability of forgotten answers", "forget_probability", ("forget_Q_A_Prob", "prob")),
    ("ROUGE of forgotten answers", "forget_rouge", ("forget_Q_A_ROUGE", "rougeL_recall")),
    ("truth ratio of forgotten rows", "forget_truth_ratio", None),
)


@dataclass(frozen=True)
class Figure:
    """One number at the end of a run.

    ``interval`` is of 95 % and None where none is known; ``start`` is the same number before training, or None;
    changes since the start have none. ``unit`` is empty for shares and other plain numbers.
    """

    name: str
    value: float
    interval: Interval | None = None
    start: float | None = None
    unit: str = ""

    @property
    def text(self) -> str:
        """The value with its interval, such as ``0.71 [0.67, 0.75]``."""
        return shown(self.value) if self.interval is None else spanned(self.interval)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        interval = None if self.interval is None else self.interval.to_json()
        return {"value": self.value, "interval": interval, "start": self.start, "unit": self.unit}


def figures(record: RunRecord) -> list[Figure]:
    """The numbers at the end of a run, in the order in which they should be read, then those of suites.

    What was not measured is left out.
    """
    of_kind = {
        "preference": _preference,
        "unlearning": _unlearning,
        "reward": _reward,
        "survivors": _survivors,
        "rounds": _rounds,
    }[record.kind](record)
    return [*of_kind, *(Figure(*found) for found in main_values(record))]


def shown(value: float) -> str:
    """A number in few characters: 0.71, -12.3, 2e-14."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value + 0.0:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def spanned(interval: Interval) -> str:
    """A value and its interval, with as many decimals as its half width needs, at least one, and as its ends need, so

    that none that is not 0 looks as if it were.
    """
    half = (interval.high - interval.low) / 2
    decimals = min(6, max(1, -math.floor(math.log10(half)))) if math.isfinite(half) and half > 0 else 2
    ends = (interval.value, interval.low, interval.high)
    while decimals < 6 and any(end and not round(end, decimals) for end in ends[1:]):
        decimals += 1
    value, low, high = (f"{round(end, decimals) + 0.0:.{decimals}f}" for end in ends)  # no minus before zeros
    return f"{value} [{low}, {high}]"


def finding(record: RunRecord, name: str) -> Mapping[str, Any]:
    """A finding of the verdict, or an empty mapping."""
    found = ((record.verdict or {}).get("findings") or {}).get(name)
    return found if isinstance(found, Mapping) else {}


def readings(record: RunRecord, name: str) -> list[Mapping[str, Any]]:
    """All readings of a probe, in order."""
    return [one[name] for one in record.metrics if isinstance(one.get(name), Mapping)]


def read_again(record: RunRecord, name: str) -> bool:
    """Whether a probe was read after the start: one that was not has nothing to say of the model after training."""
    return any(one.get("step") != 0 for one in record.metrics if isinstance(one.get(name), Mapping))


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The sentences of a probe's result; none where it is another kind of file."""
    lists = [found[key] for key in ("sentences", "verdict") if isinstance(found.get(key), list)]
    return [str(text) for one in lists for text in one]


def _preference(record: RunRecord) -> list[Figure]:
    probed = readings(record, "probe")
    end = probed[-1] if read_again(record, "probe") else {}
    learned = finding(record, "learned")
    pairs = learned.get("pairs", "probe")
    found = [_spanned(f"accuracy on {pairs} pairs", learned.get("accuracy"), finite(learned.get("start")))]
    if not learned.get("accuracy"):
        found = [_spanned("accuracy on the probe's pairs", end.get("accuracy"))]
    found += [
        _spanned("change of chosen answers", end.get("chosen"), unit=PER_ANSWER),
        _spanned("change of rejected answers", end.get("rejected"), unit=PER_ANSWER),
        _spanned("change of the margin", end.get("margin"), unit=PER_ANSWER),
        _spanned("drift outside the pairs", end.get("drift"), unit=PER_TOKEN),
        *_own_text(readings(record, "own_text") if read_again(record, "own_text") else []),
        *_loss(record),
    ]
    return [figure for figure in found if figure is not None]


def _own_text(seen: Sequence[Mapping[str, Any]]) -> list[Figure | None]:
    """Of samples that the policy drew itself."""
    if not seen:
        return []
    first, end = seen[0], seen[-1]

    def start(key: str) -> float | None:
        value = first.get(key)
        return None if len(seen) < 2 else finite(value.get("value") if isinstance(value, Mapping) else value)

    likeness = finite(end.get("likeness"))
    return [
        _spanned("reverse KL of own samples", end.get("reverse_kl"), start("reverse_kl"), "nats/sample"),
        _spanned("entropy of own samples", end.get("entropy"), start("entropy"), PER_TOKEN),
        None if likeness is None else Figure("likeness of own samples", likeness, None, start("likeness")),
        _spanned("length of own samples", end.get("tokens"), start("tokens"), "tokens"),
    ]


def _loss(record: RunRecord) -> list[Figure]:
    losses = [(one["step"], value) for one in record.metrics if (value := finite(one.get("eval_loss"))) is not None]
    if not losses or losses[-1][0] == 0:
        return []
    start = losses[0][1] if losses[0][0] == 0 and len(losses) > 1 else None
    return [Figure("loss on held-out rows", losses[-1][1], None, start)]


def _unlearning(record: RunRecord) -> list[Figure]:
    read = readings(record, "evaluation")
    if not read_again(record, "evaluation"):
        return []
    first, end = read[0] if len(read) > 1 else {}, read[-1]
    found = []
    for name, key, items in _FORGETTING:
        value = finite(end.get(key))
        if value is not None:
            values = [] if items is None else list(scores(record, *items).values())
            interval = bootstrap_mean(np.array(values), _SEED) if len(values) > 1 else None
            # the last log is not of the last reading where a run died between them
            fits = interval is not None and abs(interval.value - value) < 1e-6
            found.append(Figure(name, value, interval if fits else None, finite(first.get(key))))
    return found


def scores(record: RunRecord, entry: str, column: str) -> dict[str, float]:
    """Values of one metric of the suite's last log by item; what is no number is left out."""
    table = record.evaluations.get("TOFU_EVAL", {}).get(entry)
    items = table.get("value_by_index") if isinstance(table, Mapping) else None
    pairs = items.items() if isinstance(items, Mapping) else ()
    values = ((index, item.get(column)) for index, item in pairs if isinstance(item, Mapping))
    return {index: float(value) for index, value in values if isinstance(value, int | float) and np.isfinite(value)}


def _reward(record: RunRecord) -> list[Figure]:
    ranks, confidence = finding(record, "ranks"), finding(record, "confidence")
    found = [_spanned("accuracy on held-out pairs", ranks.get("accuracy"), finite(ranks.get("start")))]
    for name, raw in (
        ("accuracy of length alone", ranks.get("null")),
        ("confidence on held-out pairs", confidence.get("confidence")),
        ("expected calibration error", confidence.get("error")),
        ("accuracy on training pairs", finding(record, "overfit").get("training")),
    ):
        found += [] if (value := finite(raw)) is None else [Figure(name, value)]
    return [figure for figure in [*found, *_loss(record)] if figure is not None]


def _survivors(record: RunRecord) -> list[Figure]:
    found = []
    for name, key, unit in (
        ("reward of samples", "reward", ""),
        ("likeness of kept samples", "alike", ""),
        ("forward KL to the start", "distance", PER_TOKEN),
        ("length of samples", "length", "tokens"),
    ):
        facts = finding(record, key)
        if (end := finite(facts.get("end"))) is not None:
            found.append(Figure(name, end, None, finite(facts.get("start")), unit))
    return found


def _rounds(record: RunRecord) -> list[Figure]:
    if not record.metrics:
        return []
    first, last = record.metrics[0] if len(record.metrics) > 1 else {}, record.metrics[-1]
    found = []
    for name, key, unit in (
        ("judge's mean score", "score", ""),
        ("likeness of chosen samples", "similarity", ""),
        ("length of samples", "tokens", "tokens"),
        ("samples cut off", "truncated", ""),
        ("accuracy on training pairs", "accuracy", ""),
    ):
        if (value := finite(last.get(key))) is not None:
            found.append(Figure(f"{name}, last round", value, None, finite(first.get(key)), unit))
    return found


def _spanned(name: str, raw: Any, start: float | None = None, unit: str = "") -> Figure | None:
    interval = Interval.from_json(raw)
    return None if interval is None else Figure(name, interval.value, interval, start, unit)
