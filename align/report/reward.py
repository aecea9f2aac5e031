"""The block at the end of a reward model's run: what it learned, how sure it is, and what to try next. No torch.

Accuracy is praised only where it is above chance and above both null models, which always take the longer or the
shorter answer of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from align.report.thresholds import FEW_PAIRS, MISCALIBRATED, OVERFIT, WIDE_ACCURACY, WILD_SCORES
from align.report.verdict import NOT_MEASURED, Finding, Verdict, headline
from align.stats import Interval, finite, wilson

LAST = 5  # log steps whose means are averaged

Records = Sequence[Mapping[str, Any]]


def reward_verdict(
    records: Records,
    *,
    run: str = "",
    seconds: float | None = None,
    stopped: str = "",
    pairs: int | None = None,
    held_out: Mapping[str, Any] | None = None,
    paths: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on a reward model from what its run recorded.

    Args:
        records: of ``metrics.jsonl``, in order: ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins`` and
            ``rewards/accuracies`` of training batches.
        pairs: how many pairs it was trained on, for the line about training pairs.
        held_out: None, or ``n`` pairs without ties, ``ties`` pairs labelled as ties, accuracy at the ``end`` and at the
            ``start`` (or None), ``longer``, the share of pairs whose chosen answer is longer (as long: one half),
            ``calibration``, bins of sigmoid(|margin|) with ``confidence``, ``accuracy`` and ``n``, and
            ``calibration_error``, the expected calibration error.
        stopped: why a guard ended the run.
    """
    findings = [_ranks(held_out), _confidence(held_out), _scores(records), _overfit(records, held_out, pairs)]
    found = {finding.name: finding for finding in findings}
    findings.append(Finding("next", "", _next(found)))
    shown = tuple(finding.name for finding in findings)
    return Verdict(headline(run, seconds, stopped), tuple(findings), dict(paths or {}), shown)


def _accuracy(held_out: Mapping[str, Any] | None) -> Interval | None:
    if held_out is None or finite(held_out.get("end")) is None or not held_out.get("n"):
        return None
    return wilson(held_out["end"] * held_out["n"], held_out["n"])


def _ranks(held_out: Mapping[str, Any] | None) -> Finding:
    """Accuracy on held-out pairs, against chance and against always taking the longer or the shorter answer."""
    accuracy = _accuracy(held_out)
    if held_out is None or accuracy is None:
        ties = (held_out or {}).get("ties") or 0
        text = f"all {ties} held-out pairs are ties" if ties else "no held-out pairs"
        return Finding("ranks", NOT_MEASURED, text, {"ties": ties})
    longer, start, ties = finite(held_out.get("longer")), finite(held_out.get("start")), held_out.get("ties") or 0
    text = f"held-out accuracy {accuracy.value:.2f} [{accuracy.low:.2f}, {accuracy.high:.2f}], chance 0.50"
    text += "" if start is None else f", start {start:.2f}"
    null = 0.5 if longer is None else max(longer, 1 - longer)
    side = "longer" if longer is None or longer >= 0.5 else "shorter"
    text += "" if longer is None else f", always the {side} answer {null:.2f}"
    text += f", n {accuracy.n}" + (f" and {ties} ties, which do not count" if ties else "")
    facts = {"accuracy": accuracy.to_json(), "start": start, "longer": longer, "null": null, "ties": ties}
    if accuracy.n < FEW_PAIRS:
        return Finding("ranks", "too few to say", text, facts)
    if accuracy.high < 0.5:
        return Finding("ranks", "reversed", f"{text}: below chance", facts)
    if start is not None and accuracy.high < start:
        return Finding("ranks", "worse", f"{text}: below the start", facts)
    if accuracy.low <= 0.5:
        return Finding("ranks", "not shown", f"{text}: not above chance", facts)
    if accuracy.low <= null:
        return Finding("ranks", "not shown", f"{text}: not above length alone", facts)
    return Finding("ranks", "yes", text, facts)


def _confidence(held_out: Mapping[str, Any] | None) -> Finding:
    """Mean confidence, sigmoid(|margin|), minus accuracy, over the bins of the calibration curve."""
    bins = (held_out or {}).get("calibration") or []
    count = sum(part["n"] for part in bins)
    if held_out is None or not count:
        return Finding("confidence", NOT_MEASURED, "no held-out pairs with a preference")
    confidence = sum(part["confidence"] * part["n"] for part in bins) / count
    accuracy = sum(part["accuracy"] * part["n"] for part in bins) / count
    gap, error = confidence - accuracy, finite(held_out.get("calibration_error"))
    text = (
        f"confidence {confidence:.2f} and accuracy {accuracy:.2f} on average (gap {gap:+.2f}, limit {MISCALIBRATED:g}"
    )
    text += ")" if error is None else f"; expected calibration error {error:.2f})"
    facts: dict[str, Any] = {"confidence": confidence, "gap": gap, "error": error, "limit": MISCALIBRATED, "n": count}
    facts["bins"] = [dict(part) for part in bins]
    if count < FEW_PAIRS:
        return Finding("confidence", "too few to say", f"{text}, n {count}", facts)
    # the accuracy's own interval is as wide as the question: a gap within it may be chance
    own = wilson(accuracy * count, count)
    sure = not own.low <= confidence <= own.high
    word = "overconfident" if gap > 0 else "underconfident"
    return Finding("confidence", word if sure and abs(gap) >= MISCALIBRATED else "fits", text, facts)


def _scores(records: Records) -> Finding:
    """How far scores lie from 0, beside the margin that they differ by: only differences are trained."""
    last = {key: _last(records, f"rewards/{key}") for key in ("chosen", "rejected", "margins")}
    chosen, rejected, margin = last["chosen"], last["rejected"], last["margins"]
    if chosen is None or rejected is None or margin is None:
        return Finding("scores", NOT_MEASURED, "no scores were logged")
    centre = (chosen + rejected) / 2
    text = f"chosen {chosen:+.2f}, rejected {rejected:+.2f}, margin {margin:+.2f} (mean of the last log steps)"
    facts = {"chosen": chosen, "rejected": rejected, "margin": margin, "centre": centre, "limit": WILD_SCORES}
    # a model that has not learned yet has a margin near 0, beside which everything is far
    if abs(centre) > WILD_SCORES * max(abs(margin), 1.0):
        far = f"their centre {centre:+.2f} is more than {WILD_SCORES:g} margins from 0"
        return Finding("scores", "run away", f"{text}; {far}", facts)
    return Finding("scores", "centred", text, facts)


def _overfit(records: Records, held_out: Mapping[str, Any] | None, pairs: int | None) -> Finding:
    """Accuracy on training pairs far above that on held-out ones."""
    training, accuracy = _last(records, "rewards/accuracies"), _accuracy(held_out)
    if training is None or accuracy is None:
        return Finding("overfit", NOT_MEASURED, "needs training accuracy and held-out pairs")
    gap = training - accuracy.value
    of = "" if pairs is None else f" (of {pairs:,} pairs)"
    text = f"training accuracy {training:.2f}{of}, held-out {accuracy.value:.2f} (gap {gap:+.2f}, limit {OVERFIT:g})"
    facts = {"training": training, "held_out": accuracy.value, "gap": gap, "limit": OVERFIT}
    return Finding("overfit", "yes" if gap >= OVERFIT and training > accuracy.high else "no", text, facts)


def _last(records: Records, key: str) -> float | None:
    """Mean over the last log steps that have a value."""
    values = [value for record in records if (value := finite(record.get(key))) is not None]
    return mean(values[-LAST:]) if values else None


def _next(found: Mapping[str, Finding]) -> str:
    """The first rule that applies; they stand in the order of harm."""
    ranks = found["ranks"]
    if ranks.word == NOT_MEASURED:
        more = " to pairs with a preference" if ranks.facts["ties"] else ""
        return f"set data.held_out{more}, so that the next run can be judged"
    span, n = ranks.facts["accuracy"], ranks.facts["accuracy"]["n"]
    if ranks.word == "too few to say":
        return f"{n} held-out pairs are too few to say: hold out {FEW_PAIRS} or more (data.held_out)"
    if ranks.word == "reversed":
        return "see whether chosen and rejected are swapped: align check"
    if ranks.word == "worse":
        return "lower train.learning_rate: the model ranked these pairs better before"
    if found["overfit"].word == "yes":
        return "train for fewer epochs, lower train.learning_rate, or add pairs: it learns its training pairs by heart"
    if ranks.word == "not shown":
        if span["low"] > 0.5:
            return "length alone does as well: balance the lengths of chosen and rejected answers (align check)"
        if (span["high"] - span["low"]) / 2 > WIDE_ACCURACY:
            return f"{n} pairs are too few to tell: hold out more (data.held_out)"
        return "train longer, raise train.learning_rate, or look at the pairs: align check"
    if found["scores"].word == "run away":
        return "set objective.center, such as 0.01, so that scores stay near 0"
    if found["confidence"].word == "overconfident":
        return "train for fewer steps, or rescale the scores before you read them as probabilities"
    if found["confidence"].word == "underconfident":
        return "train longer: the order is right, but margins are small"
    return "ask what its scores depend on before you trust it: align probe"
