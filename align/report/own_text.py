"""What the policy writes by itself: findings from its samples at the start and at the end. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.report.thresholds import ASTRAY, ASTRAY_PARTLY, FEW_DISTINCT, SAME_TO_ALL
from align.report.verdict import NOT_MEASURED, Finding
from align.stats import Interval, finite

LAST = 5  # log steps whose estimates of the sampled KL are averaged

Records = Sequence[Mapping[str, Any]]
Reading = Mapping[str, Any]  # ``OwnTextReading.to_json``


def own_text(records: Records) -> list[Finding]:
    """Findings from the first and the last reading of own samples, and from the KL that a run with samples records."""
    readings = [record["own_text"] for record in records if isinstance(record.get("own_text"), Mapping)]
    start, end = (readings[0], readings[-1]) if len(readings) > 1 else ({}, {})
    return [astray(start, end), collapse(start, end), *_distance(records, start, end)]


def astray(start: Reading, end: Reading) -> Finding:
    """Whether the model writes text that is rarer than what the pairs have and what it wrote at the start."""
    share, logp = Interval.from_json(end.get("astray")), Interval.from_json(end.get("reference_logp"))
    before = Interval.from_json(start.get("reference_logp"))
    if share is None or logp is None:
        return _unmeasured("astray", end, "astray")
    word = "no"
    if share.low > ASTRAY_PARTLY:
        word = "yes" if share.value >= ASTRAY else "partly"
    limit = ASTRAY if word == "yes" else ASTRAY_PARTLY
    earlier = "" if before is None else f", {before.value:+.1f} at the start"
    text = (
        f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}] of its own answers are rarer than nearly all of "
        f"the pairs' and of its earlier ones (limit {limit:.0%}): {logp.value:+.1f} nats/token under the "
        f"{end['against']}{earlier}, n {share.n}"
    )
    facts = {
        "share": share.to_json(),
        "reference_logp": logp.to_json(),
        "start_reference_logp": None if before is None else before.to_json(),
        "bar": finite(end.get("bar")),
        "limit": ASTRAY,
        "limit_partly": ASTRAY_PARTLY,
    }
    return Finding("astray", word, text, facts)


def collapse(start: Reading, end: Reading) -> Finding:
    """Whether the model came to say the same to everybody."""
    alike, distinct = finite(end.get("likeness")), finite(end.get("distinct"))
    before, distinct_before = finite(start.get("likeness")), finite(start.get("distinct"))
    if alike is None or distinct is None or before is None or distinct_before is None:
        return _unmeasured("collapse", end, "tokens", "fewer than two different prompts were answered")
    facts = {"likeness": alike, "start_likeness": before, "limit_likeness": SAME_TO_ALL}
    facts |= {"distinct": distinct, "start_distinct": distinct_before, "limit_distinct": FEW_DISTINCT}
    if alike > SAME_TO_ALL >= before:
        text = f"its answers to different prompts became alike: METEOR {alike:.2f}, limit {SAME_TO_ALL:g}, "
        return Finding("collapse", "yes", f"{text}{before:.2f} at the start", facts)
    if distinct < FEW_DISTINCT <= distinct_before:
        text = f"only {distinct:.0%} of its answers are different texts, limit {FEW_DISTINCT:.0%}, "
        return Finding("collapse", "yes", f"{text}{distinct_before:.0%} at the start", facts)
    text = f"likeness of answers to different prompts {alike:.2f} (METEOR), {before:.2f} at the start"
    return Finding("collapse", "no", text, facts)


def _distance(records: Records, start: Reading, end: Reading) -> list[Finding]:
    """How far the policy went from the reference, by its own answers: the run's own estimate, or the probe's."""
    seen = [value for record in records if (value := finite(record.get("kl/sampled"))) is not None]
    if seen:
        text = (
            f"nats per fresh sample to the reference in the last {LAST} log steps or fewer (noisy; it may dip below 0)"
        )
        last = seen[-LAST:]
        facts = {"readings": len(seen), "last": last, "trained": True}
        return [Finding("distance", f"{sum(last) / len(last):.2f}", text, facts)]
    kl, per_token = (Interval.from_json(end.get(name)) for name in ("reverse_kl", "reverse_kl_per_token"))
    entropy, before = (Interval.from_json(reading.get("entropy")) for reading in (end, start))
    if kl is None or per_token is None or entropy is None or before is None:
        return []
    text = (
        f"nats per own answer to the {end['against']} [{kl.low:.1f}, {kl.high:.1f}], {per_token.value:.2f} per token, "
        f"n {kl.n}; entropy {before.value:.2f} to {entropy.value:.2f} nats/token"
    )
    facts = {"reverse_kl": kl.to_json(), "per_token": per_token.to_json(), "entropy": entropy.to_json()}
    return [Finding("distance", f"{kl.value:.1f}", text, facts | {"start_entropy": before.to_json()})]


def _unmeasured(name: str, end: Reading, key: str, why: str = "") -> Finding:
    if not end:
        return Finding(name, NOT_MEASURED, "needs samples at the start and at the end (watch.probe_answers)")
    if isinstance(end.get(key), Mapping) and end[key].get("value") is None:
        return Finding(name, NOT_MEASURED, "the last scores were not finite")
    return Finding(name, NOT_MEASURED, why or f"its own answers are compared with nothing: {end.get('why')}")
