"""The block at the end of a run on pairs: what was learned, what was lost, what to try next. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from align.report import likelihood
from align.report.advice import advice
from align.report.entanglement import entanglement, explains
from align.report.length import length
from align.report.own_text import own_text
from align.report.thresholds import CHOSEN_DROP_NATS, FEW_PAIRS, NO_MARGIN
from align.report.verdict import NOT_MEASURED, Finding, Verdict, headline
from align.stats import Interval, finite, wilson

Records = Sequence[Mapping[str, Any]]
Reading = likelihood.Reading


def preference_verdict(
    records: Records,
    *,
    run: str = "",
    seconds: float | None = None,
    stopped: str = "",
    objective: str = "",
    compares_pairs: bool = True,
    pairs: Literal["held-out", "training"] = "held-out",
    held_out: Mapping[str, Any] | None = None,
    chosen_drop_nats: float = CHOSEN_DROP_NATS,
    paths: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on a run from what it recorded.

    ``records``: of ``metrics.jsonl``, in order. What counts is a ``probe`` (``ProbeReading.to_json``; a record may also
    be such a reading itself), the first as the start and the last as the end, the lengths of generated answers (see
    ``length``), and ``eval_loss``. ``pairs`` says which rows were probed; ``held_out``, if more pairs were evaluated,
    is ``{"end": accuracy, "n": pairs, "start": accuracy or None}``, and may have ``own``, the accuracy on the
    objective's own scales, and ``longer``, the share of pairs whose chosen answer is longer. ``objective`` is its name
    in the recipe (the first, of several); one that compares no pairs (``compares_pairs`` False) is judged by its loss.
    ``stopped`` is why a guard ended the run.
    """
    readings = [probe for record in records if (probe := _reading(record)) is not None]
    start: Reading = readings[0] if len(readings) > 1 else {}
    end: Reading = readings[-1] if readings and (start or readings[-1].get("step")) else {}
    if compares_pairs:
        moved, alike = likelihood.moved(end), likelihood.imitation(end)
        doubt = "both sides rose alike" if alike.word == "yes" else ""
        doubt = "the model hardly moved" if moved.word == "no" else doubt
        findings = [
            _learned(start, end, pairs, held_out, doubt),
            moved,
            alike,
            likelihood.suppression(end, chosen_drop_nats),
            likelihood.drop(end),
            likelihood.degradation(end),
            likelihood.signal(end),
            likelihood.dispersion(end),
            *own_text(records),
            entanglement(records),
            length(records, end),
        ]
    else:
        findings = [_loss(records), *(finding for finding in own_text(records) if finding.word != NOT_MEASURED)]
    found = {finding.name: finding for finding in findings}
    findings.append(Finding("next", "", advice(found, end, objective)))
    return Verdict(headline(run, seconds, stopped), tuple(findings), dict(paths or {}), _shown(found))


def _shown(found: Mapping[str, Finding]) -> tuple[str, ...]:
    """The lines of the block; those that only matter when they are so are left out when they are not."""
    if_so = {"moved": ("no",), "imitation": ("yes",), "astray": ("yes", "partly"), "collapse": ("yes",)}
    left_out = {name for name, words in if_so.items() if name in found and found[name].word not in words}
    # answers that rose alike, or hardly moved, need no line about answers that fell
    if not {"moved", "imitation"} <= left_out:
        left_out.add("suppression")
    if "entanglement" in found and not explains(found):
        left_out.add("entanglement")
    if "distance" in found and not found["distance"].facts.get("trained"):
        left_out.add("distance")
    seen = found["dispersion"].word != "not seen" if "dispersion" in found else False
    if "astray" in {*found} - left_out and not seen:
        left_out.add("dispersion")  # it was seen on own answers, and on no others
    order = ("loss", "learned", "moved", "imitation", "suppression", "entanglement", "dispersion", "astray", "collapse")
    return tuple(name for name in (*order, "length", "distance", "next") if name in {*found, "next"} - left_out)


def _learned(start: Reading, end: Reading, pairs: str, held_out: Mapping[str, Any] | None, doubt: str) -> Finding:
    accuracy, before = Interval.from_json(end.get("accuracy")), _start_accuracy(start)
    on_own = Interval.from_json(end.get("own_accuracy"))
    own, longer = None if on_own is None else on_own.value, finite(end.get("longer"))
    if held_out is not None and finite(held_out.get("end")) is not None and held_out.get("n"):
        accuracy = wilson(held_out["end"] * held_out["n"], held_out["n"])
        before = before if held_out.get("start") is None else float(held_out["start"])
        own, longer = finite(held_out.get("own")), finite(held_out.get("longer", longer))
        pairs = "held-out"
    if accuracy is None or before is None:
        return Finding("learned", NOT_MEASURED, "accuracy needs readings at the start and at the end")
    span = f"accuracy {accuracy.value:.2f} [{accuracy.low:.2f}, {accuracy.high:.2f}]"
    span += f", start {before:.2f}, n {accuracy.n}"
    if own is not None:
        span += f"; own scales {own:.2f}"
    facts = {"accuracy": accuracy.to_json(), "own_accuracy": own, "start": before, "longer": longer, "pairs": pairs}
    if pairs != "held-out":
        return Finding("learned", NOT_MEASURED, f"no held-out pairs; on training pairs {span}", facts)
    word, why = _learned_word(accuracy, before, longer, doubt)
    return Finding("learned", word, f"held-out {span}{why}", facts)


def _learned_word(accuracy: Interval, before: float, longer: float | None, doubt: str) -> tuple[str, str]:
    """The word, and what stands against a "yes": numbers that a run without any preference reaches as well.

    ``doubt`` is what the log-probs say against it, or empty. A step of any size orders the pairs, so accuracy alone
    praises a run whose learning rate was next to 0.
    """
    if accuracy.n < FEW_PAIRS:
        return "too few to say", ""
    if accuracy.high < before:
        return "worse", ""
    if accuracy.low <= before:
        return "not shown", ""
    if doubt:
        return "not shown", f"; {doubt}"
    by_length = 0.0 if longer is None else max(longer, 1 - longer)
    if accuracy.low <= by_length:
        return "not shown", f"; always the {'longer' if longer == by_length else 'shorter'} answer: {by_length:.2f}"
    return "yes", ""


def _loss(records: Records) -> Finding:
    """Of an objective that compares no pairs: its loss on held-out rows, where there are any."""
    losses = [value for record in records if (value := finite(record.get("eval_loss"))) is not None]
    if not losses:
        return Finding("loss", NOT_MEASURED, "no held-out rows")
    if not any(record.get("step") == 0 and "eval_loss" in record for record in records):
        return Finding("loss", NOT_MEASURED, f"held-out loss {losses[-1]:.4f}; it was not measured at the start")
    word = "lower" if losses[-1] < losses[0] else "not lower"
    facts = {"start": losses[0], "end": losses[-1]}
    return Finding("loss", word, f"held-out loss {losses[-1]:.4f}, start {losses[0]:.4f}", facts)


def _start_accuracy(start: Reading) -> float | None:
    """Accuracy at the first reading; chance where policy and reference still agree and rounding alone decides pairs."""
    accuracy = Interval.from_json(start.get("accuracy"))
    if accuracy is None:
        return None
    margins = [finite((start.get("margin") or {}).get("value")), finite(start.get("reward_margin"))]
    agree = all(margin is None or abs(margin) < NO_MARGIN for margin in margins)
    return 0.5 if start.get("against") == "reference" and agree else accuracy.value


def _reading(record: Mapping[str, Any]) -> Reading | None:
    probe = record.get("probe", record if "against" in record else None)
    return probe if isinstance(probe, Mapping) else None
