"""``align check``: what is wrong with the rows of a recipe, before a model is loaded.

Every source is looked at; only the tokenizer is loaded. ``check_rows`` does the same for one data set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from align.cli.check_parts import alternates_lines, parts_of
from align.cli.check_rows import check_rows
from align.cli.findings import CheckReport
from align.cli.traits import Keys, collect
from align.data.tokens.tokenize import load_tokenizer, recognise_dataset
from align.data.tokens.unlearning import is_plain
from align.recipe import Recipe

_AGAINST = {"train": "held out", "forget": "retain"}  # the role of the rows that rows of a role are compared with


def run_check(recipe: Recipe, echo: Callable[[str], Any] = print) -> CheckReport:
    """Check every source of a recipe and say what was found, line by line through ``echo``.

    Raises ``UserError`` where a source or the tokenizer cannot be loaded, or the rows have no known format.
    """
    tokenizer = load_tokenizer(recipe.model, base=recipe.base)
    colour = echo is print and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    with _quiet():
        loaded = [(part, part.load(recipe, tokenizer)) for part in parts_of(recipe)]
        others = {role: Keys() for role in _AGAINST.values()}
        for part, rows in loaded:
            if part.role in others:
                collect(rows, recognise_dataset(rows, part.branches), others[part.role])
        reports = []
        for part, rows in loaded:
            role = _AGAINST.get(part.role, "")
            compared = any(other.role == role for other, _ in loaded)
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
            )
            reports.append(report)
            for line in report.lines():
                echo(line)
            echo("")
        for line in alternates_lines(recipe, any(p.role == "forget" and is_plain(rows) for p, rows in loaded)):
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
    result = CheckReport(reports)
    echo(result.verdict())
    return result


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
