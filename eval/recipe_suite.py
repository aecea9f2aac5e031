"""A recipe's ``evaluate`` section as something to run on a model, again and again while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.tokens.arguments import keep_arguments, kept_arguments
from align.eval import tofu
from align.eval.check_suite import target_log
from align.eval.log import TofuLog
from align.eval.tofu_data import TofuSets, load_sets
from align.eval.tofu_metrics import TofuResult, metrics
from align.models.subject import Subject
from align.recipe.stop_rule import METRICS
from align.runs.models import located

if TYPE_CHECKING:
    from align.recipe.sections import Evaluate


@dataclass(frozen=True)
class Outcome:
    """One evaluation: the per-item log and what follows from it."""

    log: TofuLog
    result: TofuResult

    def reading(self) -> dict[str, float]:
        """Metrics by the names of ``align.recipe.stop_rule.METRICS``; D and n of forget quality where there is one."""
        values = {ours: self.result.values[name] for ours, name in METRICS.items() if name in self.result.values}
        if self.result.ks is not None:
            values |= {"D": self.result.ks.d, "n": self.result.ks.n}
        return values


@dataclass(frozen=True)
class TofuSuite:
    """TOFU on one split, compared with ``target``, the log of a model that never saw the forgotten rows, or nothing."""

    sets: TofuSets
    target: TofuLog | None = None

    def target_reading(self) -> dict[str, float] | None:
        """What the suite reads of the retain model itself, or None where there is none."""
        if self.target is None:
            return None
        return Outcome(self.target, metrics(self.target, rows=self.sets.rows, seed=None)).reading()

    def __call__(self, subject: Subject) -> Outcome:
        """Measure a model. Every process calls it and all get the result. Membership is left to ``align eval tofu``."""
        log = tofu.evaluate(subject, self.sets, mia=False)
        # without intervals: they take longer than the model does
        return Outcome(log, metrics(log, self.target, rows=self.sets.rows, seed=None))


def tofu_suite(
    settings: Evaluate,
    *,
    base: Path,
    kept: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    say: Callable[[str], Any],
) -> TofuSuite:
    """The suite of a recipe. A retain model is evaluated here, unless ``kept`` holds its log already.

    It is asked with the template arguments that it was saved with, else with ``arguments``.

    Raises:
        UserError: where the questions, the retain model or its log cannot be had.
    """
    sets = load_sets(settings.split, settings.source, rows=settings.rows, base=base)
    for note in sets.notes:
        say(f"note: {note}")
    if settings.retain is None:
        return TofuSuite(sets)
    file = base / settings.retain
    if file.is_file():
        return TofuSuite(sets, target_log(file, sets))
    if kept is not None and kept.is_file():
        return TofuSuite(sets, target_log(kept, sets))
    say(f"evaluating the retain model {settings.retain}")
    subject = Subject.load(located(settings.retain, base), system=settings.source.system, echo=say)
    if not kept_arguments(subject.tokenizer):
        keep_arguments(subject.tokenizer, arguments or {})
    return TofuSuite(sets, tofu.evaluate(subject, sets, mia=False))
