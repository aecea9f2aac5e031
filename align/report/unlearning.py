"""The block at the end of an unlearning run: what was forgotten, what it cost, and what nobody tested. No torch.

Forget quality is never shown without utility: a ruined model passes through high forget quality on its way. The word
rests on the threshold that the field uses (arXiv 2401.06121 and 2404.05868): a p-value above 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.report.verdict import NOT_MEASURED, Finding, Verdict, headline

ALPHA = 0.05  # two-sample KS test against the retain model: above it, no difference was shown
KEPT = 0.9  # share of the utility at the start
COLLAPSED = 0.5

AS_BEFORE = "as before"  # a model that never knew the rows, or too few of them, passes the test at the start

_UNTESTED = "relearning, rounded weights, other questions, many samples: align eval relearn {run}"


def unlearning_verdict(
    records: Sequence[Mapping[str, Any]],
    *,
    run: str = "",
    seconds: float | None = None,
    stopped: str = "",
    has_retain_term: bool = True,
    paths: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on an unlearning run from what it recorded.

    ``records``: of ``metrics.jsonl``, in order. What counts is ``evaluation`` (the suite's metrics by the names of
    ``align.recipe.stop_rule.METRICS``, with ``D`` and ``n`` beside forget quality), the first as the start and the last
    as the end; the last ``best``; and ``p/forget`` of the training batches. ``stopped`` is why ``watch.stop_when``
    ended it.
    """
    evaluations = [r for r in records if isinstance(r.get("evaluation"), Mapping)]
    start = evaluations[0]["evaluation"] if len(evaluations) > 1 else {}
    end = evaluations[-1]["evaluation"] if len(evaluations) > 1 else {}
    best = [r["best"] for r in records if isinstance(r.get("best"), Mapping)]
    findings = [
        _forgetting(start, end, records),
        _utility(start, end),
        _best(best, evaluations),
        Finding("durability", "not tested", _UNTESTED.format(run=run or "RUN")),
    ]
    found = {finding.name: finding for finding in findings}
    findings.append(Finding("next", "", _next(found, end, has_retain_term)))
    names = tuple(finding.name for finding in findings)
    return Verdict(headline(run, seconds, stopped), tuple(findings), dict(paths or {}), names)


def number(value: float | None) -> str:
    """A p-value or share in few characters: 0.13, 2e-14; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.2g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}"


def _forgetting(start: Mapping[str, Any], end: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Finding:
    quality, utility = end.get("forget_quality"), end.get("utility")
    beside = f"at utility {number(utility)}"
    if quality is not None:
        was = start.get("forget_quality")
        word = "differs" if quality <= ALPHA else AS_BEFORE if was is not None and was > ALPHA else "like retain"
        text = f"forget quality {number(quality)} {beside} (D {end['D']:.2f}, n {end['n']}), "
        text += f"start {number(was)}"
        if word == AS_BEFORE:
            text += ": like the retain model before training, too, so nothing shows that it forgot"
        return Finding("forgetting", word, text, {"start": dict(start), "end": dict(end), "alpha": ALPHA})
    if end:
        before, after = start.get("forget_probability"), end.get("forget_probability")
        text = f"no retain model to compare with; P(forgotten answer) {number(before)} to {number(after)} {beside}"
        return Finding("forgetting", NOT_MEASURED, text, {"start": dict(start), "end": dict(end)})
    seen = [r["p/forget"] for r in records if r.get("p/forget") is not None]
    moved = (
        f"; in training batches the forgotten tokens' p went {seen[0]:.2f} to {seen[-1]:.2f}" if len(seen) > 1 else ""
    )
    return Finding("forgetting", NOT_MEASURED, f"no suite was run (evaluate: {{suite: tofu}}){moved}")


def _utility(start: Mapping[str, Any], end: Mapping[str, Any]) -> Finding:
    before, after = start.get("utility"), end.get("utility")
    if before is None or after is None:
        return Finding("utility", NOT_MEASURED, "needs a suite's readings at the start and at the end")
    if before <= 0:
        text = f"{after:.3f}, start {before:.3f}: the model had none to lose (does its template fit the questions?)"
        return Finding("utility", NOT_MEASURED, text, {"start": before, "end": after})
    share = after / before
    word = "kept" if share >= KEPT else "collapsed" if share < COLLAPSED else "damaged"
    text = f"{after:.3f}, start {before:.3f} ({share:.0%})"
    if end.get("utility_retain") is not None and start.get("utility_retain") is not None:
        text += f"; on retained rows alone {end['utility_retain']:.3f}, start {start['utility_retain']:.3f}"
    return Finding("utility", word, text, {"start": before, "end": after, "share": share})


def _best(best: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> Finding:
    if not best:
        why = "needs evaluate.retain" if evaluations else "no suite was run"
        if evaluations and evaluations[-1]["evaluation"].get("forget_quality") is not None:
            why = "no evaluated step kept enough utility (evaluate.keep_utility)"
        return Finding("best", "none kept", why)
    last = best[-1]
    text = f"forget quality {number(last['forget_quality'])} at utility {number(last['utility'])}, in {last['path']}; "
    text += "selected on the test itself: no result"
    return Finding("best", f"step {last['step']}", text, dict(last))


def _next(found: Mapping[str, Finding], end: Mapping[str, Any], has_retain_term: bool) -> str:
    """The first rule that applies; they stand in the order of harm."""
    forgetting, utility = found["forgetting"], found["utility"]
    if utility.word in ("collapsed", "damaged"):
        if not has_retain_term:
            return (
                "give data.retain and add {name: nll, branch: retain} to the objective: nothing held the rest in place"
            )
        return "lower train.learning_rate, train for fewer steps, or raise the weight of the retain term"
    if not end:
        return "measure it: add evaluate: {suite: tofu, ...} for questions, or run align eval muse on texts"
    if forgetting.word == NOT_MEASURED:
        return "set evaluate.retain to a model that never saw these rows: without it nothing says how much is enough"
    if forgetting.word == AS_BEFORE:
        return "begin with a model that knows the rows to forget, or measure more of them: a few show no difference"
    if forgetting.word == "differs":
        return "see whether it passed the retain model (eval/trajectory.png): then train for fewer steps, else for more"
    return f"run {found['durability'].text.split(': ')[-1]} before calling it forgotten, and repeat with other seeds"
