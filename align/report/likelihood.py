"""Where likelihood went on the probe set: findings from the readings of a run on pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.report.thresholds import (
    ALIKE,
    CHOSEN_DROP_NATS_PER_TOKEN,
    DRIFT_NATS_PER_TOKEN,
    MAJORITY,
    REJECTED_DROP_NATS_PER_TOKEN,
    SPENT,
    STILL_NATS,
    STILL_NATS_PER_TOKEN,
)
from align.report.verdict import NOT_MEASURED, Finding
from align.stats import Interval, finite

Reading = Mapping[str, Any]  # ``ProbeReading.to_json``


def moved(end: Reading) -> Finding:
    """Whether the run changed the model at all: by answer, or by token where answers are short."""
    sides = [Interval.from_json(end.get(side)) for side in ("chosen", "rejected")]
    if not all(sides):
        return _unmeasured("moved", end, "chosen")
    per_token = [finite(end.get(f"{side}_per_token")) or 0.0 for side in ("chosen", "rejected")]
    within = all(max(-s.low, s.high) < STILL_NATS for s in sides if s)
    still = within and max(map(abs, per_token)) < STILL_NATS_PER_TOKEN
    chosen, rejected = (s.value for s in sides if s)
    text = f"chosen {chosen:+.2f}, rejected {rejected:+.2f} nats"
    facts = {"limit_nats": STILL_NATS, "limit_nats_per_token": STILL_NATS_PER_TOKEN}
    return Finding("moved", "no" if still else "yes", f"the model hardly moved: {text}" if still else text, facts)


def imitation(end: Reading) -> Finding:
    """Both sides risen alike: the run taught how answers to such prompts sound, not which one is better."""
    chosen, rejected = Interval.from_json(end.get("chosen")), Interval.from_json(end.get("rejected"))
    if chosen is None or rejected is None:
        return _unmeasured("imitation", end, "chosen")
    numbers = f"chosen {chosen.value:+.1f}, rejected {rejected.value:+.1f} nats"
    facts = {"chosen": chosen.to_json(), "rejected": rejected.to_json(), "limit_share": ALIKE}
    if min(chosen.low, rejected.low) > 0 and rejected.value >= ALIKE * chosen.value:
        return Finding("imitation", "yes", f"both sides rose alike, imitation, not preference: {numbers}", facts)
    return Finding("imitation", "no", f"the two sides did not rise alike: {numbers}", facts)


def suppression(end: Reading, limit: float) -> Finding:
    """Chosen answers became less likely; ``limit`` in nats per answer."""
    chosen, rejected = Interval.from_json(end.get("chosen")), Interval.from_json(end.get("rejected"))
    if chosen is None or rejected is None:
        return _unmeasured("suppression", end, "chosen")
    per_token = finite(end.get("chosen_per_token")) or 0.0
    facts = {
        "chosen": chosen.to_json(),
        "rejected": rejected.to_json(),
        "chosen_per_token": per_token,
        "limit_nats": limit,
        "limit_nats_per_token": CHOSEN_DROP_NATS_PER_TOKEN,
    }
    numbers = f"chosen {chosen.value:+.1f}, rejected {rejected.value:+.1f} nats"
    if moved(end).word == "no":
        return Finding("suppression", "no", f"the model hardly moved: {numbers}", facts)
    if chosen.high >= 0:
        rose = "chosen answers became more likely" if chosen.low > 0 else "chosen answers did not clearly move"
        return Finding("suppression", "no", f"{rose}: {numbers}", facts)
    if rejected.low > 0:
        return Finding("suppression", "reversed", f"chosen fell while rejected rose: {numbers}", facts)
    heavy = -chosen.value >= limit or -per_token >= CHOSEN_DROP_NATS_PER_TOKEN
    if rejected.high < 0:
        ratio = rejected.value / chosen.value
        text = f"both answers became less likely: {numbers} ({ratio:.1f}x as far)"
    else:
        text = f"chosen answers became less likely, rejected did not clearly move: {numbers}"
    return Finding("suppression", "yes" if heavy else "mild", text, facts)


def drop(end: Reading) -> Finding:
    """D1: rejected answers lost likelihood fast."""
    rejected, per_token = Interval.from_json(end.get("rejected")), finite(end.get("rejected_per_token"))
    if rejected is None or per_token is None:
        return _unmeasured("drop", end, "rejected")
    slope = finite(end.get("rejected_slope"))
    pace = "" if slope is None else f", now {slope:+.2g} per step"
    facts = {"rejected": rejected.to_json(), "per_token": per_token, "slope": slope, "ratio": end.get("drop_ratio")}
    word = "yes" if rejected.high < 0 and -per_token >= REJECTED_DROP_NATS_PER_TOKEN else "no"
    text = f"rejected answers {rejected.value:+.1f} nats, {per_token:+.2f} per token{pace}"
    return Finding("drop", word, text, facts)


def degradation(end: Reading) -> Finding:
    """D2: chosen answers are below the reference."""
    below, slope = Interval.from_json(end.get("below")), finite(end.get("chosen_slope"))
    if below is None:
        return _unmeasured("degradation", end, "below")
    word = "still falling" if slope is not None and slope < 0 else "yes"
    if below.low <= MAJORITY or moved(end).word == "no":
        word = "no"
    than = end.get("against", "reference")
    text = f"chosen answer less likely than at the {than} in {below.value:.0%} of {below.n} pairs"
    return Finding("degradation", word, text, {"below": below.to_json(), "chosen_slope": slope, "against": than})


def signal(end: Reading) -> Finding:
    """What is left for the loss to teach on these pairs."""
    left, spent = Interval.from_json(end.get("signal")), Interval.from_json(end.get("spent"))
    if left is None or spent is None:
        return _unmeasured("signal", end, "signal", "the objective has no pull of its own on every pair")
    text = f"{left.value:.0%} of the pull at the start is left; hardly any in {spent.value:.0%} of {spent.n} pairs"
    facts = {"left": left.to_json(), "spent": spent.to_json(), "limit_share": SPENT}
    return Finding("signal", "spent" if spent.low > SPENT else "left", text, facts)


def dispersion(end: Reading) -> Finding:
    """D3: likelihood went to answers that no pair names, or text of all kinds lost it."""
    drift, of = Interval.from_json(end.get("drift")), str(end.get("drift_of", ""))
    own = drift if of.startswith("samples") else None  # of the policy at the start; else borrowed answers
    borrowed = Interval.from_json(end.get("borrowed")) if own else drift
    # half of those were rejected elsewhere: a preference for a style lowers them, as it should
    style = Interval.from_json(end.get("borrowed_chosen"))
    chosen, rejected = Interval.from_json(end.get("chosen")), Interval.from_json(end.get("rejected"))
    if drift is None or chosen is None or rejected is None:
        return _unmeasured("dispersion", end, "drift", "no answers outside the pairs were scored")
    facts = {"drift": drift.to_json(), "of": of, "limit_nats_per_token": DRIFT_NATS_PER_TOKEN}
    facts["borrowed"] = None if borrowed is None else borrowed.to_json()
    fell = chosen.high < 0 and rejected.high < 0
    sizes = [f"{borrowed.value:+.2f} nats/token on {borrowed.n} answers outside the pairs"] if borrowed else []
    if sizes and style:
        sizes[0] += f" ({style.value:+.2f} on those that are chosen elsewhere)"
        facts["borrowed_chosen"] = style.to_json()
    sizes += [f"{own.value:+.2f} on what the model wrote at the start"] if own else []
    size = ", ".join(sizes)
    if borrowed is not None and borrowed.low > 0 and fell:
        word = "yes" if borrowed.value >= DRIFT_NATS_PER_TOKEN else "mild"
        return Finding("dispersion", word, f"{size}, while both sides fell", facts)
    if own and fell and own.high < 0 and -own.value >= DRIFT_NATS_PER_TOKEN:
        return Finding("dispersion", "yes", f"{size}, and both sides fell: likelihood went to other text", facts)
    lost = [kind for kind in (borrowed, style) if kind is not None]
    if lost and all(kind.high < 0 and -kind.value >= DRIFT_NATS_PER_TOKEN for kind in lost):
        return Finding("dispersion", "drift", f"{size}: text of all kinds became less likely", facts)
    return Finding("dispersion", "not seen", size, facts)


def _unmeasured(name: str, end: Reading, key: str, why: str = "") -> Finding:
    if not end:
        return Finding(name, NOT_MEASURED, "needs readings at the start and at the end")
    if isinstance(found := end.get(key), Mapping):
        single = finite(found.get("value")) is not None
        text = "a single pair has no interval" if single else "the last scores were not finite"
        return Finding(name, NOT_MEASURED, text)
    return Finding(name, NOT_MEASURED, why or "not in the last reading")
