"""What a run's directory says, as a value that reports are made from. ``align.runs.record`` reads it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.stats import finite

if TYPE_CHECKING:
    from align.objectives.base import Objective

Kind = Literal["preference", "unlearning", "reward", "survivors", "rounds"]


@dataclass(frozen=True)
class RunRecord:
    """One run as its directory shows it; everything is plain JSON, and what is not there is empty or None.

    Attributes:
        lock: ``recipe.lock.yaml``; ``recipe`` is the recipe in it, with every default written out.
        metrics: records of ``metrics.jsonl`` in order. Every one is a mapping; of a run in rounds, one for each round.
        verdict: ``verdict.json``; None until the run has ended.
        facts: ``facts.json``: data, cost, environment, how to reproduce.
        answers: lines of ``answers.jsonl``: answers to the fixed prompts at the start and at the end.
        probe: ``probe.json``: scores of the probe's pairs at the start and at the end.
        evaluations: files of ``eval/`` by name without the ending, such as ``step-0`` and ``TOFU_EVAL``.
        rounds: of a run in rounds, the trainings of those rounds that have begun.
        notes: a sentence for each thing that could not be read.
    """

    path: Path
    kind: Kind
    lock: Mapping[str, Any]
    recipe: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    verdict: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    answers: Sequence[Mapping[str, Any]] = ()
    probe: Mapping[str, Any] | None = None
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rounds: Sequence[RunRecord] = ()
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The recipe's name, or that of the folder."""
        return str(self.recipe.get("name") or self.path.name)

    @property
    def finished(self) -> bool:
        """Whether the run has ended; its verdict is written last."""
        return self.verdict is not None

    @property
    def steps(self) -> int:
        """Optimizer steps that are recorded; of a run in rounds, of all of them."""
        in_rounds = sum(finite(record.get("steps")) or 0 for record in self.metrics if "round" in record)
        return int(in_rounds) or max((int(record.get("step", 0)) for record in self.metrics), default=0)


def kind_of(objective: Objective, *, forgets: bool = False, in_rounds: bool = False) -> Kind:
    """The kind of a run: which verdict and which sections of a report it has."""
    if in_rounds:
        return "rounds"
    if objective.scores_answers:
        return "reward"
    if forgets:
        return "unlearning"
    return "survivors" if "survivor" in objective.branches else "preference"
