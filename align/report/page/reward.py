"""The reward model in a report: its accuracy beside chance and rules that never read an answer, and its confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from align.report.calibration import draw_curve
from align.report.figures import sentences
from align.report.figures import shown as number
from align.report.page.blocks import Block, Chart, Charts, Points, Section, Table, Text
from align.report.record import RunRecord
from align.stats import Interval, finite

_PROBES = {"stability": "--pairs", "consistency": "--from"}  # and the option that names their rows


def reward(run: RunRecord) -> Section:
    """What the verdict's findings say of a reward model, and the results of its probes that lie in ``eval/``."""
    findings = (run.verdict or {}).get("findings") or {}
    ranks, confidence = findings.get("ranks") or {}, findings.get("confidence") or {}
    blocks: list[Block] = []
    span = Interval.from_json(ranks.get("accuracy"))
    if span is None:
        blocks.append(Text("Accuracy on held-out pairs was not measured.", quiet=True))
    else:
        rows = [("this model", number(span.value), f"{number(span.low)} to {number(span.high)}", f"{span.n:,}")]
        others = {"chance": 0.5, "before training": finite(ranks.get("start"))}
        if (longer := finite(ranks.get("longer"))) is not None:
            others |= {"always the longer answer": longer, "always the shorter answer": 1 - longer}
        rows += [(name, number(value), "-", "-") for name, value in others.items() if value is not None]
        blocks.append(Table(("accuracy on held-out pairs", "value", "95 % interval", "n"), rows))
    if bins := confidence.get("bins"):
        blocks.append(Charts((calibration_chart(bins),)))
    else:
        blocks.append(Text("The calibration of its confidence was not measured.", quiet=True))
    probes = {name: found for name, found in run.evaluations.items() if sentences(found)}
    for name, found in probes.items():
        blocks += [Text(f"{name}:"), Points(sentences(found))]
    if not probes:
        commands = [
            f"align probe {probe} {run.path} {option} FILE --out {run.path}/eval/{probe}.json"
            for probe, option in _PROBES.items()
        ]
        blocks.append(Text(f"What its scores depend on was not asked: {' and '.join(commands)}.", quiet=True))
    return Section("Reward model", blocks)


def calibration_chart(bins: Sequence[Mapping[str, Any]]) -> Chart:
    """Accuracy against confidence."""
    about = "Of the pairs in which the model is 80 % sure, about 80 % should be right. Bars are 95 % intervals."
    points = [f"confidence {number(b['confidence'])}: accuracy {number(b['accuracy'])}, n {b['n']}" for b in bins]
    return Chart("Calibration", about, f"Calibration. {'; '.join(points)}.", partial(draw_curve, bins=bins), height=3.8)
