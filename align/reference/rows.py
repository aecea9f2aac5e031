"""Log-probs that rows bring along in columns ``<branch>_logp_<model>``: what of them an objective reads, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from align.engine.reads import Hidden
from align.errors import UserError
from align.objectives.base import Objective

COLUMN = "_logp_"


def check_reads(objective: Objective) -> None:
    """Refuse an objective that reads more of its reference than log-probs of whole answers.

    Raises:
        UserError: with what to do.
    """
    if any(read.needs_reference or isinstance(read, Hidden) for read in objective.reads()):
        raise UserError(
            "The objective compares distributions or hidden states with the reference's, but its reference are "
            "log-probs that rows bring along (reference.rows, or rounds). Remove that, or that part of the objective."
        )
    if objective.by_token:
        raise UserError(
            "objective.ld_alpha weighs single tokens, but the reference's log-probs come from rows (reference.rows, or "
            "rounds), which have one for each whole answer. Remove ld_alpha, or keep a reference model."
        )


def check_anchors(objective: Objective, reference: str | None, rows: Any) -> None:
    """Refuse rows without the log-probs that the objective reads from them.

    Args:
        reference: the model whose log-probs in the rows stand for the reference's; None where a reference is kept.
        rows: a prepared data set.

    Raises:
        UserError: naming the columns that are missing or have gaps, or the objective that reads more than log-probs.
    """
    needed = [f"{branch}{COLUMN}{name}" for name in objective.anchors for branch in objective.branches]
    if reference is not None and objective.needs_reference:
        check_reads(objective)
        needed += [f"{branch}{COLUMN}{reference}" for branch in objective.reference_branches]
    columns = rows.column_names or list(next(iter(rows), {}))
    if missing := [name for name in dict.fromkeys(needed) if name not in columns]:
        raise UserError(
            f"The rows lack {', '.join(missing)}: log-probs of whole answers, in nats, which this objective reads. "
            "Rounds write them (set rounds:); rows of your own must be tokenised and bring them along."
        )
    for name in dict.fromkeys(needed) if hasattr(rows, "__len__") else ():
        values = np.asarray(rows.with_format(None)[name][:], dtype=float)
        if bad := np.flatnonzero(~np.isfinite(values)).tolist():
            raise UserError(f"Row {bad[0]}: {name} is no finite number ({len(bad)} rows in all).")
