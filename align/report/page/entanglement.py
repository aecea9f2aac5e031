"""Gradient entanglement in a report: whether a step can raise the chosen answer and lower the rejected one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.report.page.blocks import Chart, Charts, Section, Text
from align.report.page.curves import Curve, Line
from align.report.page.panel import Limit, Panel
from align.report.record import RunRecord
from align.stats import finite

_CASES = {
    "ideal": "chosen up, rejected down",
    "both_up": "both up",
    "both_down": "both down",
    "reversed": "reversed",
    "still": "neither moves",
}
_RARE = ("reversed", "still")
CASES = Curve(
    "Cases",
    "What one plain gradient step does to the answers of a pair, to first order.",
    "share of pairs",
    tuple(Line(f"case/{name}", label) for name, label in _CASES.items()),
)
COSINE = Curve(
    "Cosine",
    "Between the gradients of chosen and rejected log-probs, mean over pairs. Near 1 they can only move together.",
    "-1 to 1",
    (Line("entanglement/cosine", "cosine"),),
)
_INTERVAL = (
    "For which beta_minus / beta_plus chosen rises and rejected falls: both ends (medians over pairs), and the ratio "
    "that serves most of them."
)


def entanglement(run: RunRecord) -> Section:
    """Cases over time, the cosine of both gradients, and the ratios of betas that would serve."""
    readings = [record["entanglement"] for record in run.metrics if isinstance(record.get("entanglement"), Mapping)]
    if not readings:
        return Section("Gradient entanglement", [Text("Gradient products of pairs were not measured.", quiet=True)])
    charts = Charts(tuple(map(Chart.of, entanglement_panels(run))))
    return Section("Gradient entanglement", [Text(_about(readings[-1])), charts, Text(_claim(run, readings[-1]))])


def entanglement_panels(run: RunRecord) -> list[Panel]:
    """The charts that the run has values for."""
    records = [_with_shares(record) for record in run.metrics if isinstance(record.get("entanglement"), Mapping)]
    ends = {"low": "low end", "high": "high end", "best": "best"}
    lines = tuple(Line(f"entanglement/{name}", label) for name, label in ends.items())
    limits = (Limit(ratio, "in use"),) if (ratio := own_ratio(run)) is not None else ()
    wanted = (CASES, COSINE, Curve("Feasible interval", _INTERVAL, "ratio of betas", lines, limits, log=True))
    return [panel for curve in wanted if (panel := curve.panel(records)) is not None]


def own_ratio(run: RunRecord) -> float | None:
    """beta_minus / beta_plus of the run's objective, 1 where it has one beta; None where it says neither."""
    objective = run.recipe.get("objective")
    first = objective[0] if isinstance(objective, list) and objective else objective
    if not isinstance(first, Mapping):
        return None
    plus, minus = first.get("beta_plus"), first.get("beta_minus")
    if isinstance(plus, int | float) and isinstance(minus, int | float) and plus > 0:
        return minus / plus
    return 1.0 if isinstance(first.get("beta"), int | float) else None


def _with_shares(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the share of each case; the rare ones are there only where some pair has them."""
    found = record["entanglement"].get("cases")
    counted = {name: finite(count) for name, count in found.items()} if isinstance(found, Mapping) else {}
    cases = {name: count for name, count in counted.items() if count is not None}
    total = sum(cases.values())
    shown = {name: count for name, count in cases.items() if count or name not in _RARE}
    return {**record, "case": {name: count / total for name, count in shown.items()} if total else {}}


def _about(reading: Mapping[str, Any]) -> str:
    text = f"Gradients ({reading.get('of', 'of some weights')}) of {reading.get('n')} held-out pairs."
    if (share := reading.get("share_at_best")) is not None and reading.get("best") is not None:
        text += f" At the end a ratio of {reading['best']:.2g} would serve {share:.0%} of them."
    head = reading.get("head")
    if isinstance(head, Mapping) and head.get("same_case") is not None:
        text += f" The head alone, without a backward pass, comes to the same case in {head['same_case']} of them."
    return text


def _claim(run: RunRecord, reading: Mapping[str, Any]) -> str:
    """What the cases can say of this run's optimizer."""
    optimizer = str((run.recipe.get("train") or {}).get("optim") or "adamw_torch")
    if optimizer == "sgd":
        return (
            "The run trained with SGD: of a step on the pair alone the cases hold to first order of the learning rate."
        )
    text = f"The cases are exact to first order for plain SGD on the pair alone. {optimizer} rescales gradients"
    scaled = (reading.get("adam") or {}).get("cases") or {}
    found = [f"{_CASES[name]} in {count}" for name, count in scaled.items() if count and name in _CASES]
    if found:
        text += f" (with its scales of that step: {', '.join(found)} of {sum(scaled.values())} pairs)"
    return f"{text} and adds earlier ones, so here they are a hint: what happened is in the curves above."
