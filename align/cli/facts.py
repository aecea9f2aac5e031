"""What the plumbing does for an objective, in words: what it needs, and what its losses are divided by. No torch."""

from __future__ import annotations

from align.engine.reads import Hidden, LogProb, Score
from align.objectives import Objective
from align.objectives.base import FRESH, sources_of


def needs(objective: Objective) -> list[str]:
    """What must be there: branches of rows, samples, a reference, reads beyond log-probs, log-probs in the rows."""
    rows = sources_of(objective.branches)
    found = [", ".join(rows)] if rows else []
    if "sample" in objective.branches:
        found.append("fresh samples")
    if "survivor" in objective.branches:
        found.append("fresh samples and a judge")
    reads = objective.reads()
    whole = any(read.needs_reference for read in reads)
    if objective.needs_reference:
        found.append("a reference and its whole distributions" if whole else "a reference")
    else:
        found.append("no reference")
    if any(isinstance(read, Hidden) for read in reads):
        found.append("hidden states")
    if objective.scores_answers:
        found.append("a head that scores answers")
    if objective.row_values:
        found.append(f"{' and '.join(objective.row_values)} of rows that have one")
    if any(not isinstance(read, Hidden | LogProb | Score) and not read.needs_reference for read in reads):
        found.append("whole distributions of the policy")
    if objective.anchors:
        found.append(f"log-probs under the {' and the '.join(objective.anchors)} policy, which rounds write to rows")
    return [*found, *filter(None, [objective.coupled])]


def reduction(objective: Objective) -> str:
    """What the losses of an optimizer step are divided by, for each of its terms."""
    pairs = "mean over pairs" if {"chosen", "rejected"} <= set(objective.branches) else "mean over rows"
    each = ", each by its own tokens" if getattr(objective, "norm", None) == "seq_mean" else ""
    return "; ".join(f"{_divided(unit, pairs)}{each}" for unit in objective.units)


def _divided(unit: str, examples: str) -> str:
    """``unit`` as ``Term`` has it, in words."""
    if unit == "examples":
        return examples
    if unit == "step":
        return "sum over the step"
    kind = unit.partition(":")[0]
    branches = " and ".join(part.partition(":")[2] for part in unit.split("+"))
    if kind == "tokens":
        return f"mean over {branches} tokens"
    return f"mean over {branches}s" if branches in FRESH else f"mean over {branches} answers"
