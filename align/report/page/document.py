"""The document of one run: which sections it has, and in which order."""

from __future__ import annotations

from collections.abc import Mapping

from align.report.limits import limits
from align.report.page.about import answers, cost, data, reproduce
from align.report.page.blocks import Block, Chart, Charts, Document, Points, Section, Table, Text
from align.report.page.curves import THREE_D, Curve, compares_pairs, curves, panels
from align.report.page.entanglement import entanglement
from align.report.page.evaluation import evaluation
from align.report.page.reward import reward
from align.report.page.unlearning import front
from align.report.page.verdict import verdict
from align.report.record import RunRecord
from align.report.rounds import COLUMNS, cells

KINDS = {
    "preference": "preference run",
    "unlearning": "unlearning run",
    "reward": "reward model",
    "survivors": "run on its own best samples",
    "rounds": "run in rounds",
}


def document(run: RunRecord) -> Document:
    """All sections that make sense for the kind of run; what it did not measure is a sentence in them."""
    sections = [verdict(run)]
    if run.kind == "rounds" and run.metrics:
        sections.append(Section("Rounds", [Table(COLUMNS, [cells(record) for record in run.metrics])]))
    sections.append(charts("Curves", run, curves(run)))
    if run.kind == "preference" and compares_pairs(run):
        sections += [charts("Drop, degradation, dispersion", run, THREE_D), entanglement(run)]
    if run.kind == "unlearning":
        sections.append(front(run))
    sections.append(evaluation(run))
    if run.kind == "reward":
        sections.append(reward(run))
    if run.answers or run.kind == "preference":
        sections.append(answers(run))
    sections += [data(run), cost(run), reproduce(run), Section("Limits", [Points(limits(run))])]
    return Document(run.name, about(run), sections)


def charts(title: str, run: RunRecord, wanted: tuple[Curve, ...]) -> Section:
    """A section of charts, and a sentence about those that the run has no values for."""
    drawn, missing = panels(run, wanted)
    blocks: list[Block] = [Charts(tuple(map(Chart.of, drawn)))] if drawn else []
    if missing:
        blocks.append(Text(f"Not measured: {', '.join(map(_in_a_sentence, missing))}.", quiet=True))
    return Section(title, blocks)


def about(run: RunRecord) -> list[str]:
    """What stands under the title: kind, objective, model, steps."""
    model = run.recipe.get("model")
    facts = [KINDS[run.kind], objective(run), str(model.get("id", "")) if isinstance(model, Mapping) else ""]
    facts.append(f"{run.steps:,} steps{'' if run.finished else ' so far'}")
    return [fact for fact in facts if fact]


def objective(run: RunRecord) -> str:
    """The names of the objectives that are added up, with their weights."""
    found = run.recipe.get("objective")
    parts = [part for part in (found if isinstance(found, list) else [found]) if isinstance(part, Mapping)]
    weights = ["" if part.get("weight", 1) == 1 else f"{part['weight']:g} " for part in parts]
    return " + ".join(f"{weight}{part.get('name')}" for weight, part in zip(weights, parts, strict=True))


def _in_a_sentence(title: str) -> str:
    return title if title.isupper() else title[0].lower() + title[1:]
