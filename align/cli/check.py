"""``align check``: what is wrong with a recipe and its rows, before a model is loaded.

Every source is looked at, and the structure of the model; only the tokenizer and the model's configuration are read, no
weights. ``check_rows`` does the same for one data set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from align.cli.check_model import model_config, stepping
from align.cli.check_parts import Part, alternates_lines, parts_of
from align.cli.check_rows import check_rows
from align.cli.findings import CheckReport, Finding, SetReport, finding_lines
from align.cli.traits import Keys, collect
from align.data.rows.sources import naming
from align.data.tokens.tokenize import load_tokenizer, recognise_dataset
from align.data.tokens.unlearning import is_plain
from align.errors import UserError
from align.models.ends import checkpoint_ends
from align.models.look import look
from align.models.policy import adapter_note
from align.objectives.base import LABELLED
from align.recipe import Recipe
from align.recipe.template_arguments import dated

_AGAINST = {"train": "held out", "forget": "retain"}  # the role of the rows that rows of a role are compared with


class Checked(NamedTuple):
    """A part of the recipe's data whose rows were checked; of the rows only this is kept.

    ``copies`` says how often each row is there, and ``plain`` whether they are texts without a prompt.
    """

    part: Part
    report: SetReport
    copies: int
    plain: bool


def run_check(recipe: Recipe, echo: Callable[[str], Any] = print) -> CheckReport:
    """Check every source of a recipe and say what was found, line by line through ``echo``.

    Raises ``UserError`` where a source or the tokenizer cannot be loaded, or the rows have no known format.
    """
    tokenizer = load_tokenizer(recipe.model, base=recipe.base, arguments=dated(recipe.data.template_arguments))
    ends = checkpoint_ends(recipe.model, recipe.base)
    colour = echo is print and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    whole: list[Finding] = []
    objective = recipe.objective_value()
    config = None
    try:
        config = model_config(recipe.model, recipe.base)
    except UserError as error:  # the rows are looked at all the same
        whole.append(Finding("error", "model", str(error)))
    else:
        look(recipe.model, recipe.base, reward=objective.scores_answers)
        if note := adapter_note(recipe.model, recipe.base):
            echo(note)
    with _quiet():
        parts = parts_of(recipe)
        others = {role: Keys() for role in _AGAINST.values()}
        for part in parts:
            if part.role in others:
                rows = part.load(recipe, tokenizer)
                with naming(part.source):
                    others[part.role] += collect(rows, recognise_dataset(rows, part.branches), compared=True)[0]
        checked: list[Checked] = []
        for part in parts:
            rows = part.load(recipe, tokenizer)
            role = _AGAINST.get(part.role, "")
            compared = any(other.role == role for other in parts)
            with naming(part.source):
                report = check_rows(
                    rows,
                    tokenizer,
                    part.branches,
                    system=part.source.system,
                    name=part.called(rows),
                    role=part.role,
                    held_out=others[role] if compared else None,
                    colour=colour,
                    max_length=recipe.data.max_length,
                    truncation=recipe.data.truncation,
                    config=config,
                    ends=ends,
                    values=objective.row_values,
                )
            checked.append(Checked(part, report, part.copies(rows), is_plain(rows)))
            for line in report.lines():
                echo(line)
            echo("")
        for line in alternates_lines(recipe, any(one.part.role == "forget" and one.plain for one in checked)):
            echo(line)
        if recipe.judge is not None:
            named = recipe.judge.model_dump(exclude_none=True, exclude={"dtype", "revision"})
            kind, value = next(iter(named.items()))
            echo(f"Judge  {kind}: {value if isinstance(value, str) else value['url']}   not looked at before the run")
            echo("")
        if recipe.evaluate is not None:
            from align.eval.check_suite import suite_lines

            for line in [*suite_lines(recipe.evaluate, recipe.base), ""]:
                echo(line)
        reports = [one.report for one in checked]
        whole += _balance(recipe, reports)
        whole += _steps(recipe, checked)
        if whole:
            for line in ["Recipe", "", *finding_lines(whole), ""]:
                echo(line)
    result = CheckReport(reports, whole)
    echo(result.verdict())
    return result


def _steps(recipe: Recipe, checked: Sequence[Checked]) -> Iterator[Finding]:
    """Findings on the batch, where the number of examples is known: not of a stream, nor of rounds, which draw them."""
    if recipe.rounds is not None or any(one.part.source.streaming for one in checked):
        return
    examples = 0.0
    for part, report, copies, _ in checked:
        kept = report.preparation.examples
        if part.role == "train":
            examples += max(1, round(part.source.weight * kept)) if kept else 0
        elif part.role == "forget":
            examples += kept // copies
    if examples:  # else that is said already
        yield from stepping(recipe, int(examples))


def _balance(recipe: Recipe, reports: Sequence[SetReport]) -> Iterator[Finding]:
    """Whether labelled answers are balanced, all sources of ``data.train`` together."""
    counts = [0.0, 0.0]
    for source, report in zip(recipe.data.train or [], reports, strict=False):  # which come first
        for side, count in enumerate(report.preparation.labels or ()):
            counts[side] += source.weight * count
    rows = {name: round(count) for name, count in zip(LABELLED, counts, strict=True)}
    if any(rows.values()) and (found := recipe.objective_value().balance(rows)):
        yield Finding("warning", "balance", found)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars between the lines of a report."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
