"""What a run does not show, by rule from what its record lacks: for the page and the model card. Imports no torch."""

from __future__ import annotations

from align.report.figures import figures, finding, readings, sentences
from align.report.record import RunRecord
from align.report.suites import kinds, trials
from align.report.thresholds import FEW_PAIRS
from align.report.verdict import NOT_MEASURED
from align.stats import Interval

LIVE = "report"  # among the probes of the budget: a live report, which measures nothing


def limits(record: RunRecord) -> list[str]:
    """A sentence for each thing that the run's numbers cannot tell."""
    return [
        *ending(record),
        f"One seed ({record.recipe.get('seed', 0)}): another one may come out otherwise.",
        *_rows(record),
        *_of_kind(record),
        *_unmeasured(record),
        *_without_interval(record),
        *_conditions(record),
        *trials(record),
        *record.notes,
    ]


def ending(record: RunRecord) -> list[str]:
    """Why a run has no verdict; nothing of one that has."""
    if record.finished:
        return []
    if stopped := record.facts.get("stopped"):
        return [f"The run was stopped before its end, so there is no verdict: {stopped}"]
    return [f"The run has not ended: all numbers are of step {record.steps:,} or earlier, and there is no verdict."]


def _rows(record: RunRecord) -> list[str]:
    """How many rows the claims rest on."""
    if record.kind not in ("preference", "reward"):
        return []
    if not (record.recipe.get("data") or {}).get("held_out"):
        return ["No rows were held out (data.held_out): nothing here shows what was learned beyond the training rows."]
    out = []
    span = finding(record, "learned" if record.kind == "preference" else "ranks").get("accuracy")
    if (interval := Interval.from_json(span)) is not None and interval.n < FEW_PAIRS:
        out.append(f"{interval.n} held-out pairs are too few to say anything about accuracy.")
    if (probed := readings(record, "probe")) and probed[-1].get("n"):
        measured = f"Changes of log-probs are measured on {probed[-1]['n']} of the held-out pairs"
        out.append(f"{measured}; other prompts may fare otherwise.")
    return out


def _of_kind(record: RunRecord) -> list[str]:
    """What a run of this kind never measures, and what it was judged by."""
    if record.kind == "reward":
        if any(sentences(one) for one in record.evaluations.values()):
            return []
        return ["What its scores depend on (order, wording, length) was not asked: align probe tells."]
    if record.kind == "unlearning":
        said = finding(record, "durability")
        out = (
            [f"Durability was not tested: {said['text']}"]
            if said.get("word") == "not tested" and "durability" not in record.evaluations
            else []
        )
        evaluate = record.recipe.get("evaluate") or {}
        if evaluate and not evaluate.get("retain"):
            out.append("There was no retain model (evaluate.retain) to compare with, so forget quality is unknown.")
        if finding(record, "best").get("path"):
            out.append("The best step was selected on the test questions themselves: its numbers are no result.")
        return out
    if record.kind in ("survivors", "rounds"):
        return ["The judge that chose the training samples is the only one that was asked: another may disagree."]
    judged = kinds(record) & {"alpaca", "harness"}
    out = [] if judged else ["Nobody judged the answers: there is no win rate and no benchmark here."]
    if not readings(record, "own_text"):
        out.append("The policy's own samples were not read, so likelihood that went to text of its own is not seen.")
    return out


def _unmeasured(record: RunRecord) -> list[str]:
    found = ((record.verdict or {}).get("findings") or {}).items()
    return [
        f"{name} was not measured: {one.get('text', '')}." for name, one in found if one.get("word") == NOT_MEASURED
    ]


def _without_interval(record: RunRecord) -> list[str]:
    names = [figure.name for figure in figures(record) if figure.interval is None]
    return [f"No interval is known for: {', '.join(names)}."] if names else []


def _conditions(record: RunRecord) -> list[str]:
    """What stands against repeating the run, or was left out while it ran."""
    out = []
    probes = ((record.facts.get("cost") or {}).get("probes") or {}).get("probes") or {}
    left = {name: cost["skipped"] for name, cost in probes.items() if name != LIVE and cost.get("skipped")}
    if left:
        counts = ", ".join(f"{count:,} of {name.replace('_', ' ')}" for name, count in left.items())
        out.append(f"Readings were left out to stay within the probes' budget: {counts}.")
    git = (record.facts.get("environment") or {}).get("git") or {}
    if git.get("dirty"):
        out.append("The recipe's folder held changes that no commit holds.")
    if str(record.lock.get("samples", "")).startswith("not exactly"):
        out.append(f"Another run draws the same samples {record.lock['samples']}.")
    return out
