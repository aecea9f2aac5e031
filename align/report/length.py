"""How the length of generated answers changed: greedy answers to the probe's prompts, or what the run sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.report.thresholds import LENGTH_CHANGE
from align.report.verdict import NOT_MEASURED, Finding
from align.stats import Interval, bootstrap_ratio, finite

_SEED = 0  # of the bootstrap


def length(records: Sequence[Mapping[str, Any]], end: Mapping[str, Any]) -> Finding:
    """The change from the first to the last answers, beside what the pairs of the reading ``end`` teach.

    ``answer_tokens`` of a record are the lengths of answers to the same prompts, compared prompt by prompt;
    ``generated_tokens`` and ``samples/tokens`` are means, of which no interval is known. ``changed`` of the facts says
    whether it is beyond the limit and, where an interval is known, not by chance.
    """
    taught, facts = _taught(end)
    greedy = [record for record in records if record.get("answer_tokens")]
    if len(greedy) > 1:
        change, source, sizes = _paired(greedy[0]["answer_tokens"], greedy[-1])
    else:
        lengths = (record.get("generated_tokens", record.get("samples/tokens")) for record in records)
        means = [value for one in lengths if (value := finite(one)) is not None]
        if len(means) < 2 or means[0] <= 0:
            why = "no sampled answers"
            return Finding("length", NOT_MEASURED, "; ".join(filter(None, [why, taught])), facts)
        value = means[-1] / means[0] - 1
        change, source, sizes = Interval(value, value, value, 1), "", (means[0], means[-1])
    facts |= {"start_tokens": sizes[0], "end_tokens": sizes[1], "growth": change.value, "limit": LENGTH_CHANGE}
    sure = change.low > 0 or change.high < 0
    facts["changed"] = sure and abs(change.value) >= LENGTH_CHANGE
    return Finding("length", f"{change.value:+.0%}", "; ".join(filter(None, [source, taught])), facts)


def _paired(start: Sequence[int], last: Mapping[str, Any]) -> tuple[Interval, str, tuple[float, float]]:
    """Change as a share with its interval over prompts, the sentence, and both means."""
    end = last["answer_tokens"]
    ratio = bootstrap_ratio(end, start, _SEED)
    change = Interval(ratio.value - 1, max(ratio.low, 0.0) - 1, ratio.high - 1, ratio.n)  # no length is below 0
    sizes = (sum(start) / len(start), sum(end) / len(end))
    span = f"[{change.low:+.0%}, {change.high:+.0%}]" if ratio.n > 1 else "[?]"
    limit = f", at most {last['answer_limit']}" if last.get("answer_limit") else ""
    return change, f"{sizes[0]:.0f} to {sizes[1]:.0f} tokens {span}, n {ratio.n}{limit}", sizes


def _taught(end: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """How much longer the chosen answers of the pairs are, in words and as facts."""
    chosen, rejected = finite(end.get("chosen_length")), finite(end.get("rejected_length"))
    facts: dict[str, Any] = {"chosen_tokens": chosen, "rejected_tokens": rejected}
    if chosen is None or not rejected:
        return "", facts
    ratio = chosen / rejected - 1
    size = f"{abs(ratio):.0%}"
    if size == "0%":
        return "chosen and rejected answers are of one length", facts
    return f"chosen answers are {size} {'longer' if ratio > 0 else 'shorter'} than rejected ones", facts
