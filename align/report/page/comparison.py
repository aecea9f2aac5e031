"""The document of several runs of one kind: what differs in their settings, and charts with a line for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from align.report.compare import MISSING, Comparison, compare
from align.report.limits import limits
from align.report.page.about import by_prompt, cost_facts
from align.report.page.blocks import Answer, Answers, Block, Chart, Charts, Document, Key, Points, Section, Table, Text
from align.report.page.curves import THREE_D, Curve, compares_pairs, curves, panels
from align.report.page.document import KINDS
from align.report.page.entanglement import entanglement_panels
from align.report.page.panel import Panel, overlaid
from align.report.page.unlearning import front_chart
from align.report.record import RunRecord


def comparison(runs: Sequence[RunRecord]) -> Document:
    """Raises UserError where the runs cannot be compared."""
    found = compare(runs)
    lettered = dict(zip(found.labels, found.runs, strict=True))
    sections = [
        Section("Verdicts", [_table(found, "", [(row.name, *row.cells) for row in found.words])]),
        Section("Settings that differ", [_settings(found)]),
        Section("Numbers at the end", _numbers(found)),
        _charts("Curves", lettered, _wanted(runs)),
    ]
    if any(compares_pairs(run) for run in runs) and runs[0].kind == "preference":
        alone = [replace(curve, lines=curve.lines[:1]) for curve in THREE_D]
        sections.append(_charts("Drop, degradation, dispersion", lettered, alone))
        drawn = {label: entanglement_panels(run) for label, run in lettered.items()}
        sections.append(_overlaid("Gradient entanglement", drawn))
    if runs[0].kind == "unlearning" and (chart := front_chart(lettered)) is not None:
        sections.append(Section("Forgetting and its cost", [Charts((chart,))]))
    if texts := _answers(_named(found)):
        sections.append(Section("Fixed prompts at the end", [Answers(texts)]))
    sections.append(Section("Cost", [_cost(found)]))
    sections.append(Section("Limits", [Points([*found.notes, *_limits(lettered)])]))
    keys = [Key(name, place, str(run.path)) for place, (name, run) in enumerate(_named(found).items())]
    about = [f"comparison of {len(runs)} runs", KINDS[runs[0].kind]]
    return Document(", ".join(run.name for run in runs), about, sections, keys)


def _named(found: Comparison) -> dict[str, RunRecord]:
    """The runs by their letters and names."""
    return {f"{label} {run.name}": run for label, run in zip(found.labels, found.runs, strict=True)}


def _table(found: Comparison, first: str, rows: Sequence[Sequence[str]]) -> Block:
    """A column for each run; a sentence where there is no row."""
    return Table((first, *_named(found)), rows) if rows else Text("None of these runs has ended.", quiet=True)


def _settings(found: Comparison) -> Block:
    rows = [(row.name, *row.cells) for row in found.settings]
    return _table(found, "", rows) if rows else Text("None: the runs differ in their names alone.")


def _numbers(found: Comparison) -> list[Block]:
    """Values with their intervals, then what two runs show on the same items."""
    rows = []
    for name, row in found.numbers:
        unit = next(figure.unit for figure in row if figure)
        cells = [figure.text if figure else MISSING for figure in row]
        rows.append((f"{name} ({unit})" if unit else name, *cells))
    blocks: list[Block] = [_table(found, "with 95 % intervals", rows)] if rows else []
    for one in found.paired:
        if one.differences:
            lines = [
                (f"{d.what} ({d.unit})" if d.unit else d.what, d.text, f"{d.interval.n:,}", d.word)
                for d in one.differences
            ]
            title = f"{one.label} minus {found.labels[0]}, item by item"
            blocks.append(Table(("", "difference [95 % interval]", "n", ""), lines, title=title))
    return blocks or [Text("Nothing was evaluated beside the curves.", quiet=True)]


def _cost(found: Comparison) -> Block:
    """Time, memory and speed, where every run recorded them."""
    facts = [dict(cost_facts(run)) for run in found.runs]
    shared = [name for name in facts[0] if all(name in own for own in facts)]
    if not shared:
        return Text("Time and memory were not recorded for every run.", quiet=True)
    return _table(found, "", [(name, *(own[name] for own in facts)) for name in shared])


def _wanted(runs: Sequence[RunRecord]) -> tuple[Curve, ...]:
    """The curves of all runs, each once."""
    return tuple(dict.fromkeys(curve for run in runs for curve in curves(run)))


def _charts(title: str, runs: Mapping[str, RunRecord], wanted: Sequence[Curve]) -> Section:
    return _overlaid(title, {label: panels(run, wanted)[0] for label, run in runs.items()})


def _overlaid(title: str, drawn: Mapping[str, Sequence[Panel]]) -> Section:
    together = overlaid(drawn)
    if not together:
        return Section(title, [Text("Not measured in any of these runs.", quiet=True)])
    return Section(title, [Charts(tuple(map(Chart.of, together)))])


def _answers(named: Mapping[str, RunRecord]) -> tuple[Answer, ...]:
    """The last answers of each run to the prompts that all were asked."""
    ends = {name: by_prompt(run, first=False) for name, run in named.items()}
    first = next(iter(ends.values()))
    shared = [prompt for prompt in first if all(prompt in own for own in ends.values())]
    return tuple(Answer(prompt, {name: own[prompt] for name, own in ends.items()}) for prompt in shared)


def _limits(runs: Mapping[str, RunRecord]) -> list[str]:
    """What holds of every run once, and what holds of some with their names."""
    every = {name: limits(run) for name, run in runs.items()}
    sentences = dict.fromkeys(text for own in every.values() for text in own)
    out = []
    for text in sentences:
        having = [name for name, own in every.items() if text in own]
        out.append(text if len(having) == len(every) else f"{', '.join(having)}: {text}")
    return out
