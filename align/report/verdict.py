"""The block at the end of a run: what was learned, what was lost, what to try next. Imports no torch.

Each word follows from recorded numbers by a rule whose thresholds are the constants below; ``docs/diagnostics.md`` says
why each is where it is. What was not measured is called so, and no word rests on a point estimate where an interval
is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from align.report.progress import duration
from align.stats import Interval, finite, wilson

CHOSEN_DROP_NATS = 20.0  # suppression: per answer; a recipe's watch.chosen_drop_nats takes its place
CHOSEN_DROP_NATS_PER_TOKEN = 0.5  # suppression: the same for short answers, whose sums are small
REJECTED_DROP_NATS_PER_TOKEN = 1.0  # drop: rejected tokens e times less likely on average
MAJORITY = 0.5  # degradation: share of pairs whose chosen answer is below the reference
DRIFT_NATS_PER_TOKEN = 0.25  # dispersion and drift of answers that no pair names
LENGTH_GROWTH = 0.25  # generated answers longer by this share call for advice
STILL_NATS = 1.0  # neither side moved by this much: the run hardly trained
WIDE_ACCURACY = 0.1  # half width of the accuracy's interval beyond which more pairs are the first advice
NO_MARGIN = 0.01  # start and reference are one model up to rounding: accuracy at the start is chance

LAST = 5  # log steps whose estimates of the sampled KL are averaged

NOT_MEASURED = "not measured"
_SHOWN = ("learned", "suppression", "dispersion", "length", "distance", "next")

_MORE_PULL_ON_CHOSEN = {
    "dpo": "try objective.name=rpo, flex_dpo with a smaller beta_minus, or a larger beta",
    "flex_dpo": "lower objective.beta_minus by a fifth, or try objective.name=rpo",
    "rpo": "raise objective.eta, or lower train.learning_rate",
    "simpo": "lower train.learning_rate, or add {name: nll, weight: 0.1} to the objective",
}
_SUPPRESSION_ADVICE = "add {name: nll, weight: 0.1} to the objective, or lower train.learning_rate"


@dataclass(frozen=True)
class Finding:
    """One line: ``word`` is the verdict, ``text`` says on what it rests, ``facts`` are the numbers (JSON)."""

    name: str
    word: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """All findings of a run. ``lines`` prints those named in ``shown``, ``to_json`` gives every one."""

    headline: str
    findings: tuple[Finding, ...]
    paths: Mapping[str, str]
    shown: tuple[str, ...] = _SHOWN

    def __getitem__(self, name: str) -> Finding:
        return next(finding for finding in self.findings if finding.name == name)

    def lines(self, *, full: bool = False) -> list[str]:
        """The end block; with ``full``, the findings that it leaves out too."""
        shown = [finding for finding in self.findings if full or finding.name in self.shown]
        width = max(12, *(len(finding.word) + 2 for finding in shown))
        body = [f"  {f.name:<14}{f.word.ljust(width) if f.word else ''}{f.text}".rstrip() for f in shown]
        ends = [f"  {name:<8} {path}" for name, path in self.paths.items()]
        return [self.headline, "", *body, *([""] if ends else []), *ends]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for the run directory and the report."""
        findings = {f.name: {"word": f.word, "text": f.text, **f.facts} for f in self.findings}
        return {"headline": self.headline, "findings": findings, "paths": dict(self.paths)}


def verdict(
    records: Sequence[Mapping[str, Any]],
    *,
    run: str = "",
    seconds: float | None = None,
    stopped: str = "",
    objective: str = "",
    pairs: Literal["held-out", "training"] = "held-out",
    held_out: Mapping[str, Any] | None = None,
    chosen_drop_nats: float = CHOSEN_DROP_NATS,
    paths: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on a run from what it recorded.

    ``records``: of ``metrics.jsonl``, in order. What counts is a ``probe`` (``ProbeReading.to_json``; a record may also
    be such a reading itself), the first as the start and the last as the end, and ``generated_tokens`` (of an online
    run ``samples/tokens``), the mean length of sampled answers. ``pairs`` says which rows were probed; ``held_out``, if
    more pairs were evaluated, is ``{"end": accuracy, "n": pairs, "start": accuracy or None}``. ``objective`` is its
    name in the recipe (the first, of several). ``stopped`` is why a guard ended the run.
    """
    readings = [probe for record in records if (probe := _reading(record)) is not None]
    start: Mapping[str, Any] = readings[0] if len(readings) > 1 else {}
    end: Mapping[str, Any] = readings[-1] if readings and (start or readings[-1].get("step")) else {}
    findings = [
        _learned(start, end, pairs, held_out),
        _suppression(end, chosen_drop_nats),
        _drop(end),
        _degradation(end),
        _dispersion(end),
        _length(records, end),
    ]
    by_name = {finding.name: finding for finding in findings}
    findings += _sampled_kl(records)
    findings.append(Finding("next", "", _next(by_name, end, objective)))
    return Verdict(headline(run, seconds, stopped), tuple(findings), dict(paths or {}))


def _learned(
    start: Mapping[str, Any], end: Mapping[str, Any], pairs: str, held_out: Mapping[str, Any] | None
) -> Finding:
    accuracy, before = Interval.from_json(end.get("accuracy")), _start_accuracy(start)
    if held_out is not None and finite(held_out.get("end")) is not None and held_out.get("n"):
        accuracy = wilson(held_out["end"] * held_out["n"], held_out["n"])
        before = before if held_out.get("start") is None else float(held_out["start"])
        pairs = "held-out"
    if accuracy is None or before is None:
        return Finding("learned", NOT_MEASURED, "accuracy needs readings at the start and at the end")
    span = f"accuracy {accuracy.value:.2f} [{accuracy.low:.2f}, {accuracy.high:.2f}]"
    span += f", start {before:.2f}, n {accuracy.n}"
    facts = {"accuracy": accuracy.to_json(), "start": before, "pairs": pairs}
    if pairs != "held-out":
        return Finding("learned", NOT_MEASURED, f"no held-out pairs; on training pairs {span}", facts)
    word = "yes" if accuracy.low > before else "worse" if accuracy.high < before else "not shown"
    return Finding("learned", word, f"held-out {span}", facts)


def _suppression(end: Mapping[str, Any], limit: float) -> Finding:
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
    if chosen.high >= 0:
        moved = "chosen answers became more likely" if chosen.low > 0 else "chosen answers did not clearly move"
        return Finding("suppression", "no", f"{moved}: {numbers}", facts)
    if rejected.low > 0:
        return Finding("suppression", "reversed", f"chosen fell while rejected rose: {numbers}", facts)
    heavy = -chosen.value >= limit or -per_token >= CHOSEN_DROP_NATS_PER_TOKEN
    if rejected.high < 0:
        ratio = rejected.value / chosen.value
        text = f"both answers became less likely: {numbers} ({ratio:.1f}x as far)"
    else:
        text = f"chosen answers became less likely, rejected did not clearly move: {numbers}"
    return Finding("suppression", "yes" if heavy else "mild", text, facts)


def _drop(end: Mapping[str, Any]) -> Finding:
    rejected, per_token = Interval.from_json(end.get("rejected")), finite(end.get("rejected_per_token"))
    if rejected is None or per_token is None:
        return _unmeasured("drop", end, "rejected")
    slope = finite(end.get("rejected_slope"))
    pace = "" if slope is None else f", now {slope:+.2g} per step"
    facts = {"rejected": rejected.to_json(), "per_token": per_token, "slope": slope, "ratio": end.get("drop_ratio")}
    word = "yes" if rejected.high < 0 and -per_token >= REJECTED_DROP_NATS_PER_TOKEN else "no"
    text = f"rejected answers {rejected.value:+.1f} nats, {per_token:+.2f} per token{pace}"
    return Finding("drop", word, text, facts)


def _degradation(end: Mapping[str, Any]) -> Finding:
    below, slope = Interval.from_json(end.get("below")), finite(end.get("chosen_slope"))
    if below is None:
        return _unmeasured("degradation", end, "below")
    word = "no" if below.low <= MAJORITY else "still falling" if slope is not None and slope < 0 else "yes"
    than = end.get("against", "reference")
    text = f"chosen answer less likely than at the {than} in {below.value:.0%} of {below.n} pairs"
    return Finding("degradation", word, text, {"below": below.to_json(), "chosen_slope": slope, "against": than})


def _dispersion(end: Mapping[str, Any]) -> Finding:
    drift = Interval.from_json(end.get("drift"))
    chosen, rejected = Interval.from_json(end.get("chosen")), Interval.from_json(end.get("rejected"))
    if drift is None or chosen is None or rejected is None:
        return _unmeasured("dispersion", end, "drift", "no answers outside the pairs were scored")
    facts = {"drift": drift.to_json(), "of": end.get("drift_of", ""), "limit_nats_per_token": DRIFT_NATS_PER_TOKEN}
    size = f"{drift.value:+.2f} nats/token on {drift.n} answers outside the pairs"
    if drift.low > 0 and chosen.high < 0 and rejected.high < 0:
        word = "yes" if drift.value >= DRIFT_NATS_PER_TOKEN else "mild"
        return Finding("dispersion", word, f"{size}, while both sides fell", facts)
    if drift.high < 0 and -drift.value >= DRIFT_NATS_PER_TOKEN:
        return Finding("dispersion", "drift", f"{size}: text of all kinds became less likely", facts)
    return Finding("dispersion", "not seen", size, facts)


def _length(records: Sequence[Mapping[str, Any]], end: Mapping[str, Any]) -> Finding:
    lengths = (record.get("generated_tokens", record.get("samples/tokens")) for record in records)
    sampled = [value for length in lengths if (value := finite(length)) is not None]
    chosen, rejected = finite(end.get("chosen_length")), finite(end.get("rejected_length"))
    taught = ""
    if chosen is not None and rejected:
        ratio = chosen / rejected - 1
        size = f"{abs(ratio):.0%}"
        taught = f"chosen answers are {size} {'longer' if ratio > 0 else 'shorter'} than rejected ones"
        taught = taught if size != "0%" else "chosen and rejected answers are of one length"
    facts: dict[str, Any] = {"chosen_tokens": chosen, "rejected_tokens": rejected}
    if len(sampled) < 2 or sampled[0] <= 0:
        return Finding("length", NOT_MEASURED, "; ".join(filter(None, ["no sampled answers", taught])), facts)
    growth = sampled[-1] / sampled[0] - 1
    facts |= {"start_tokens": sampled[0], "end_tokens": sampled[-1], "growth": growth}
    return Finding("length", f"{growth:+.0%}", taught, facts)


def _sampled_kl(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """With fresh samples: how far the policy went from the reference, by its own answers."""
    seen = [value for record in records if (value := finite(record.get("kl/sampled"))) is not None]
    if not seen:
        return []
    text = f"nats per fresh sample to the reference in the last {LAST} log steps or fewer (noisy; it may dip below 0)"
    last = seen[-LAST:]
    return [Finding("distance", f"{sum(last) / len(last):.2f}", text, {"readings": len(seen), "last": last})]


def _next(found: Mapping[str, Finding], end: Mapping[str, Any], objective: str) -> str:
    """The first rule that applies; they stand in the order of harm."""
    learned, suppression, dispersion = found["learned"], found["suppression"], found["dispersion"]
    if suppression.word == NOT_MEASURED and end:
        return "the run diverged: lower train.learning_rate, or set train.max_grad_norm"
    if suppression.word == NOT_MEASURED:
        return "set data.held_out, so that the next run can be judged"
    if suppression.word == "reversed" or learned.word == "worse":
        return "see whether chosen and rejected are swapped: align check"
    if suppression.word == "yes":
        return _MORE_PULL_ON_CHOSEN.get(objective, _SUPPRESSION_ADVICE)
    if dispersion.word in ("yes", "drift"):
        return "lower train.learning_rate, train for fewer steps, or raise beta"
    if learned.word == NOT_MEASURED:
        return "set data.held_out: accuracy on training pairs does not show what was learned"
    if learned.word == "not shown":
        moved = max(abs(end[side]["value"]) for side in ("chosen", "rejected"))
        if moved < STILL_NATS:
            return f"the model hardly moved ({moved:.2f} nats): raise train.learning_rate or train longer"
        span = learned.facts["accuracy"]
        if (span["high"] - span["low"]) / 2 > WIDE_ACCURACY:
            return f"{span['n']} pairs are too few to tell: raise watch.probe_pairs or evaluate on more"
        return "train longer, or look at the pairs: align check"
    if found["length"].facts.get("growth", 0.0) > LENGTH_GROWTH:
        return "answers grew: try objective.name=simpo, or ipo with reduction=per_token"
    return "nothing stands out in these numbers; read some answers before trusting them"


def _start_accuracy(start: Mapping[str, Any]) -> float | None:
    """Accuracy at the first reading; chance where policy and reference still agree and rounding alone decides pairs."""
    accuracy = Interval.from_json(start.get("accuracy"))
    if accuracy is None:
        return None
    margins = [finite((start.get("margin") or {}).get("value")), finite(start.get("reward_margin"))]
    agree = all(margin is None or abs(margin) < NO_MARGIN for margin in margins)
    return 0.5 if start.get("against") == "reference" and agree else accuracy.value


def _unmeasured(name: str, end: Mapping[str, Any], key: str, why: str = "") -> Finding:
    if not end:
        return Finding(name, NOT_MEASURED, "needs readings at the start and at the end")
    if isinstance(end.get(key), Mapping):
        return Finding(name, NOT_MEASURED, "the last scores were not finite")
    return Finding(name, NOT_MEASURED, why or "not in the last reading")


def _reading(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    probe = record.get("probe", record if "against" in record else None)
    return probe if isinstance(probe, Mapping) else None


def headline(run: str, seconds: float | None, stopped: str) -> str:
    """The first line: whether the run ended by itself, how long it took, where it is."""
    took = "" if seconds is None else f" {'after' if stopped else 'in'} {duration(seconds)}"
    reason = f": {stopped.rstrip('.')}" if stopped else ""
    return f"{'Stopped' if stopped else 'Done'}{took}{reason}." + (f"  {run}" if run else "")
