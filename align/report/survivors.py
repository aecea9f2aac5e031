"""The block at the end of a run that imitates its own best samples: reward, likeness, distance, length. No torch.

A reward is never shown without the likeness of answers: a policy that says one well-liked thing to everybody gets the
highest reward of all (arXiv 2310.16763).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from align.report.verdict import NOT_MEASURED, Finding, Verdict, headline
from align.stats import finite

CUT = 0.5  # share of samples that the length limit cut off, beyond which that is the first advice
PART = 4  # the first and the last quarter of the log steps are compared


def survivors_verdict(
    records: Sequence[Mapping[str, Any]],
    *,
    run: str = "",
    seconds: float | None = None,
    stopped: str = "",
    similarity_limit: float = 0.3,
    paths: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict from records of ``metrics.jsonl``: rewards, similarities, ``kl_forward/survivor`` and lengths."""
    findings = [
        _reward(records),
        _alike(records, similarity_limit),
        _kl(records),
        _length(records),
    ]
    found = {finding.name: finding for finding in findings}
    findings.append(Finding("next", "", _next(found)))
    names = tuple(finding.name for finding in findings)
    return Verdict(headline(run, seconds, stopped), tuple(findings), dict(paths or {}), names)


def _values(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [value for record in records if (value := finite(record.get(key))) is not None]


def _ends(values: Sequence[float]) -> tuple[list[float], list[float]]:
    count = max(1, len(values) // PART)
    return list(values[:count]), list(values[-count:])


def _reward(records: Sequence[Mapping[str, Any]]) -> Finding:
    values = _values(records, "reward/samples")
    if len(values) < 2:
        return Finding("reward", NOT_MEASURED, "needs two log steps with scored samples")
    first, last = _ends(values)
    change = mean(last) - mean(first)
    text = f"{mean(last):.2f}, start {mean(first):.2f} (mean over log steps, n {len(last)} each)"
    facts = {"start": mean(first), "end": mean(last), "n": len(last)}
    if len(last) < 3:
        return Finding("reward", "not clear", f"{text}: too few log steps to tell", facts)
    error = math.sqrt((stdev(first) ** 2 + stdev(last) ** 2) / len(last))
    word = "rose" if change > 2 * error else "fell" if change < -2 * error else "not clear"
    return Finding("reward", word, text, facts | {"standard_error": error})


def _alike(records: Sequence[Mapping[str, Any]], limit: float) -> Finding:
    kept, every = _values(records, "similarity/survivors"), _values(records, "similarity/random")
    if not kept:
        return Finding("alike", NOT_MEASURED, "needs kept samples of at least two prompts between log steps")
    first, last = _ends(kept)
    text = f"METEOR {mean(last):.2f} between kept answers to different prompts, start {mean(first):.2f}"
    text += f"; between all samples {mean(_ends(every)[1]):.2f}" if every else ""
    word = "collapsed" if mean(last) > limit else "no"
    return Finding("alike", word, f"{text} (limit {limit:g})", {"start": mean(first), "end": mean(last)})


def _kl(records: Sequence[Mapping[str, Any]]) -> Finding:
    values = _values(records, "kl_forward/survivor")
    if not values:
        return Finding("distance", NOT_MEASURED, "the objective has no KL term: nothing holds the model near its start")
    last = mean(_ends(values)[1])
    return Finding(
        "distance", f"{last:.3f}", "nats per token, from the model at the start to the policy", {"end": last}
    )


def _length(records: Sequence[Mapping[str, Any]]) -> Finding:
    values, cut = _values(records, "samples/tokens"), _values(records, "samples/truncated")
    if not values:
        return Finding("length", NOT_MEASURED, "no samples")
    first, last = (mean(part) for part in _ends(values))
    growth = last / first - 1 if first else 0.0
    text = f"samples have {last:.0f} tokens, start {first:.0f}; {mean(_ends(cut)[1]):.0%} are cut off" if cut else ""
    return Finding(
        "length", f"{growth:+.0%}", text, {"start": first, "end": last, "cut": mean(_ends(cut)[1]) if cut else 0.0}
    )


def _next(found: Mapping[str, Finding]) -> str:
    """The first rule that applies; they stand in the order of harm."""
    reward, alike, kl = found["reward"], found["alike"], found["distance"]
    if alike.word == "collapsed":
        more = "raise objective.kl_weight" if kl.word != NOT_MEASURED else "give the objective a KL term"
        return f"{more}, or lower train.learning_rate: the answers have become one answer"
    if found["length"].facts.get("cut", 0.0) > CUT:
        return "raise sampling.max_new_tokens, or say what ends an answer (sampling.stop): most samples are cut off"
    if reward.word == "fell":
        return "lower train.learning_rate, or look at what is kept: align show samples RUN --best"
    if reward.word != "rose":
        return "train longer, raise sampling.samples, or raise train.learning_rate"
    return "let another judge score the answers: this reward was trained against; align show samples RUN"
