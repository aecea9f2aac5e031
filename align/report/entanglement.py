"""Whether the two answers of a pair pull each other along: a finding from the readings of gradient products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.report.thresholds import MAJORITY
from align.report.verdict import NOT_MEASURED, Finding
from align.stats import Interval, finite, wilson

# what may be said of a real step
CLAIM = (
    "The cases are exact to first order for a small step of SGD on each pair alone. Adam moves weights by scales of "
    "its own and along past gradients, and other pairs push the same weights, so of a real step they are a hint."
)
# cases of which a majority is the word
_MEANING = {
    "ideal": "the chosen answer rises and the rejected one falls",
    "both_down": "both answers fall together",
    "both_up": "both answers rise together",
    "reversed": "the chosen answer falls and the rejected one rises",
}


def entanglement(records: Sequence[Mapping[str, Any]]) -> Finding:
    """What the last reading says of the pairs, by the case of which the interval lies above ``MAJORITY``.

    ``records`` of ``metrics.jsonl``, those with ``entanglement``. The cases are of a small step of gradient descent on
    each pair alone, with the loss's own pulls.
    """
    readings = [record["entanglement"] for record in records if isinstance(record.get("entanglement"), Mapping)]
    if not readings:
        return Finding("entanglement", NOT_MEASURED, "no gradients of held-out pairs were compared")
    last = readings[-1]
    n, cases = last.get("n") or 0, last.get("cases") or {}
    if not n:
        why = f"no gradient of {last.get('left_out', 0)} pairs was finite and other than 0"
        return Finding("entanglement", NOT_MEASURED, why)
    shares = {name: wilson(cases.get(name, 0), n) for name in _MEANING}
    cosine = Interval.from_json(last.get("cosine"))
    facts = {
        "of": last.get("of", ""),
        "n": n,
        "cases": dict(cases),
        "shares": {name: share.to_json() for name, share in shares.items()},
        "cosine": None if cosine is None else cosine.to_json(),
        "start_cases": dict(readings[0].get("cases") or {}),
        "adam_cases": (last.get("adam") or {}).get("cases"),
        "best": finite(last.get("best")),
        "limit": MAJORITY,
        "claim": CLAIM,
    }
    main = next((name for name, share in shares.items() if share.low > MAJORITY), None)
    text = _counts(cases, n) if main is None else _most(main, shares[main])
    text += f", to first order of SGD (gradients over the {_weights(last)}"
    text += ")" if cosine is None else f", cosine {cosine.value:+.2f})"
    if main is not None and facts["adam_cases"]:
        text += f"; with Adam's scale in {facts['adam_cases'].get(main, 0)} of {last['adam']['n']}"
    if (reversed_ := cases.get("reversed", 0)) and main != "reversed":
        text += f"; {reversed_} are reversed: the loss pulls them the wrong way"
    return Finding("entanglement", "not clear" if main is None else main.replace("_", " "), text + _ratio(last), facts)


def explains(found: Mapping[str, Finding]) -> bool:
    """Whether it says why the answers of a run moved together, which is when it belongs into the block."""
    word = found["entanglement"].word
    fell, rose = found["suppression"].word in ("yes", "mild"), found["imitation"].word == "yes"
    return (word == "both down" and fell) or (word == "both up" and rose) or word == "reversed"


def _most(case: str, share: Interval) -> str:
    hits = round(share.value * share.n)
    return f"{_MEANING[case]} in {hits} of {share.n} pairs [{share.low:.2f}, {share.high:.2f}]"


def _counts(cases: Mapping[str, int], n: int) -> str:
    """No case has a majority that is sure."""
    parts = [f"{count} {name.replace('_', ' ')}" for name, count in cases.items() if count]
    return f"of {n} pairs {', '.join(parts)}"


def _weights(reading: Mapping[str, Any]) -> str:
    return f"{reading.get('of', '')}{' ' + reading['block'] if reading.get('block') else ''}"


def _ratio(reading: Mapping[str, Any]) -> str:
    """The ratio of pulls that would serve more pairs than equal ones do, where there is one."""
    best, at_one, at_best = (finite(reading.get(key)) for key in ("best", "share_at_one", "share_at_best"))
    if best is None or at_one is None or at_best is None or at_best <= at_one:
        return ""
    return f"; beta_minus / beta_plus of {best:.2f} would part {at_best:.0%} of them, equal betas part {at_one:.0%}"
