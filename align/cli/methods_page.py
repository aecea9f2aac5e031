"""The table of all objectives in docs/methods.md, written from the objectives themselves; ``make docs`` calls it."""

from __future__ import annotations

import re

from align.cli.facts import needs, reduction
from align.cli.markdown import table
from align.objectives import OBJECTIVES, Objective
from align.objectives.base import FRESH

METHODS = "docs/methods.md"
BEGIN = "<!-- objectives: begin; written by `make docs`, do not edit -->\n"
END = "<!-- objectives: end -->\n"
_HEAD = (
    "objective",
    "loss",
    "pull on chosen (alternate)",
    "pull on rejected (forget)",
    "needs",
    "reduction",
    "when to use it",
)
_FORGETTING = {"forget", "alternate", "retain"}


def methods_page(page: str) -> str:
    """The page with its table as the objectives are now. Raises ValueError where the page has no marks for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{METHODS} needs the lines {BEGIN!r} and {END!r}; the table of objectives goes between them.")
    return f"{before}{BEGIN}\n{objectives_table()}\n{END}{after}"


def objectives_table() -> str:
    """One row for each objective at its defaults: those of pairs, on samples, for forgetting, then terms to add."""
    made = {name: kind() for name, kind in OBJECTIVES.items()}
    order = sorted(made, key=lambda name: (_family(made[name]), name))
    return table(_HEAD, [_row(name, made[name]) for name in order])


def _family(objective: Objective) -> int:
    branches = set(objective.branches)
    if objective.compares_pairs:
        return 0
    if branches & set(FRESH):
        return 1
    return 2 if branches & _FORGETTING else 3


def _row(name: str, objective: Objective) -> tuple[str, ...]:
    clauses = "<br>".join(f"`{clause}`" for clause in re.split("[;,]  ", objective.equation))
    done = ("; ".join(needs(objective)), reduction(objective), objective.when)
    return (name, clauses, *_pulls(objective), *done)


def _pulls(objective: Objective) -> tuple[str, str]:
    """The cells of both pulls, with what m is where they name it; of words that stand for them, the first cell."""
    if not isinstance(objective.pulls, tuple):
        return objective.pulls or "", ""
    raised, lowered = objective.pulls
    cells = [f"`{raised}`", "the same" if lowered == raised else f"`{lowered}`"]
    margin = next((i for i, pull in enumerate(objective.pulls) if re.search(r"\b[ms]\b", pull)), None)
    if margin is not None:
        cells[margin] += f"<br>`m = {objective.m}`"
    return cells[0], cells[1]
