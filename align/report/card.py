"""The model card: what was trained, from what, how, with which result, and what is not known. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from align.objectives import OBJECTIVES, Objective, WeightedSum, name_of
from align.report.figures import Figure, figures, shown
from align.report.limits import limits
from align.report.page.untrusted import fenced, markdown, visible
from align.report.record import RunRecord
from align.report.thresholds import FEW_PAIRS

_UNKNOWN = "One seed. The result says where its numbers come from; what else this model does was not measured."
# figures that belong to a data set, and what the Hub calls such a metric
_ON_HELD_OUT = {
    "accuracy on held-out pairs": "accuracy",
    "loss on held-out rows": "loss",
    "forget quality (p-value)": "forget_quality",
    "utility": "model_utility",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card states. ``settings`` and ``versions`` are printed as they come, and the lines of ``verdict``.

    ``record`` is that of a run that has ended: its numbers, rows and limits are those of the report.
    """

    name: str
    objective: Objective
    base_model: str | None = None
    adapter: bool = False
    data: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None
    versions: Mapping[str, Any] | None = None
    verdict: Sequence[str] = ()
    record: RunRecord | None = None
    tags: Sequence[str] = ("align", "trl")


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the Hub's header. Text of models and data does not enter it, nor do folders."""
    record = facts.record
    results = [] if record is None else _results(record)
    header = ModelCardData(
        library_name="peft" if facts.adapter else "transformers",
        base_model=facts.base_model,
        tags=sorted({*facts.tags, *(name for name, _ in parts(facts.objective) if name in OBJECTIVES)}),
        pipeline_tag="text-classification" if facts.objective.scores_answers else "text-generation",
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    lines = ["---", header.to_yaml(), "---", "", f"# {markdown(facts.name)}", "", *_origin(facts), "", "## Result", ""]
    lines += fenced(facts.verdict) if facts.verdict else ["Training had not ended when this card was written."]
    if record is not None:
        lines += _section("Evaluation", _table(figures(record)))
    rows = [] if record is None else [f"- {markdown(line)}" for line in _rows(record)]
    lines += _section("Data", [*(f"- {markdown(line)}" for line in facts.data), *rows])
    lines += _section("Settings", [f"- {key}: {markdown(str(value))}" for key, value in (facts.settings or {}).items()])
    if record is not None:
        lines += _section("Reproduce", _reproduce(record))
    versions = ", ".join(f"{name} {version}" for name, version in (facts.versions or {}).items() if version)
    lines += _section("Versions", [versions] if versions else [])
    lines += _section(
        "Limits", [f"- {markdown(line)}" for line in limits(record)] if record is not None else [_UNKNOWN]
    )
    text = "\n".join(lines) + "\n"
    return text if record is None else _without_folder(text, record.path)


def _without_folder(text: str, run: Path) -> str:
    """``RUN`` in place of the run's directory, where its name says where on a machine it lies."""
    return re.sub(rf"(?<![\w.]){re.escape(str(run))}(?!\w)", "RUN", text) if run.is_absolute() else text


def _origin(facts: CardFacts) -> list[str]:
    """What it was made from and by which objective."""
    origin = f"`{visible(facts.base_model).replace('`', '')}`" if facts.base_model else "a model of the author's own"
    what = "An adapter for" if facts.adapter else "Fine-tuned from"
    lines = [f"{what} {origin}, trained with align on the following objective.", ""]
    for name, objective in parts(facts.objective):
        fields = markdown(", ".join(f"{k} = {v}" for k, v in vars(objective).items()))
        lines += [f"- **{objective.title or name}** (`{name}`: {fields})"]
        lines += [f"  {text}" for text in (objective.equation, objective.paper) if text]
    return lines


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _table(found: Sequence[Figure]) -> list[str]:
    """The numbers at the end; only what was measured has a row."""
    if not found:
        return []
    rows = ["| | value [95 % interval] | n | at the start |", "|---|---|---|---|"]
    for figure in found:
        name = f"{figure.name} ({figure.unit})" if figure.unit else figure.name
        n = "-" if figure.interval is None else f"{figure.interval.n:,}"
        start = "-" if figure.start is None else shown(figure.start)
        rows.append(f"| {markdown(name)} | {figure.text} | {n} | {start} |")
    return rows


def _of_few(figure: Figure) -> bool:
    return figure.interval is not None and figure.interval.n < FEW_PAIRS


def _results(record: RunRecord) -> list[EvalResult]:
    """What the Hub's index of results takes: numbers that were measured on a data set with a name, and on enough rows.

    The Hub shows them alone, without the words beside them that doubt a number from a few rows.
    """
    data = record.recipe.get("data") or {}
    suite = (record.recipe.get("evaluate") or {}).get("source") or {}
    sources = {"unlearning": [suite]}.get(record.kind, data.get("held_out") or [])
    names = [str(one.get("id") or Path(str(one.get("path") or "the generated world")).name) for one in sources if one]
    found = [figure for figure in figures(record) if figure.name in _ON_HELD_OUT and not _of_few(figure)]
    if not names:
        return []
    return [
        EvalResult(
            task_type="text-classification" if record.kind == "reward" else "text-generation",
            dataset_type=str(sources[0].get("id") or "local"),
            dataset_name=", ".join(names),
            metric_type=_ON_HELD_OUT[figure.name],
            metric_name=figure.name,
            metric_value=figure.value,
        )
        for figure in found
    ]


def _rows(record: RunRecord) -> list[str]:
    """How many rows there were and how long their parts."""
    sets = (record.facts.get("data") or {}).get("sets") or {}
    out = []
    for name, counts in sets.items():
        means = ", ".join(f"{part} {tokens['mean']:.0f}" for part, tokens in counts["tokens"].items())
        out.append(f"{name}: {counts['rows']:,} rows; mean tokens: {means}")
    return out


def _reproduce(record: RunRecord) -> list[str]:
    environment = record.facts.get("environment") or {}
    git = environment.get("git") or {}
    out = [*fenced([str(record.facts["reproduce"])]), ""] if record.facts.get("reproduce") else []
    if environment:
        out += [f"- recipe (digest): {environment['recipe_digest'][:16]}, seed {environment['seed']}"]
        if digest := record.lock.get("data"):
            out.append(f"- data (digest): {str(digest)[:16]}")
        device, processes = environment.get("device"), environment.get("processes", 1)
        out += [f"- {processes} x {markdown(str(device))}, {environment['precision']}"]
    if git:
        out.append(f"- commit of the recipe's folder: {git['commit']}{', with changes' if git['dirty'] else ''}")
    return out


def parts(objective: Objective) -> list[tuple[str, Objective]]:
    """Recipe names and values of the objectives that are added up."""
    if isinstance(objective, WeightedSum):
        return [pair for part, _ in objective.parts for pair in parts(part)]
    return [(name_of(type(objective)), objective)]
