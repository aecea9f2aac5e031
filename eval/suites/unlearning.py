"""TOFU and MUSE as suites: the model's log and a retain model's, and the metrics of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from align.eval import muse as muse_on_model
from align.eval import muse_metrics, tofu_data, tofu_metrics
from align.eval import tofu as tofu_on_model
from align.eval.kept_subject import KeptSubject
from align.eval.log import MuseLog, TofuLog
from align.eval.log_read import read_log, read_muse_log
from align.eval.suites.measuring import Measured, Measuring, digest_of_rows
from align.eval.suites.sections import Muse, Tofu
from align.runs.models import located
from align.runs.processes import free

_TOFU = ("forget_quality", "model_utility", "forget_Q_A_Prob", "forget_Q_A_ROUGE")
_MUSE = ("forget_knowmem_ROUGE", "forget_verbmem_ROUGE", "privleak", "retain_knowmem_ROUGE")
Log = TypeVar("Log", TofuLog, MuseLog)


def tofu(settings: Tofu, now: Measuring) -> Measured:
    """TOFU on one split. Raises ``UserError`` where questions or the retain model cannot be had."""
    sets = tofu_data.load_sets(settings.split, now.suite.place(settings.source), rows=settings.rows, limit=now.limit)
    for note in sets.notes:
        now.say(f"note: {note}")

    def measure(subject: KeptSubject) -> TofuLog:
        return tofu_on_model.evaluate(subject, sets)

    retain = _retain(settings.retain or _own_log(settings, now), now, read_log, measure)
    result = tofu_metrics.metrics(measure(now.subject()), retain, rows=settings.rows)
    return Measured(result, _TOFU, digest_of_rows([sets.sets, sets.holdout]))


def muse(settings: Muse, now: Measuring) -> Measured:
    """MUSE on one corpus. Raises ``UserError`` where texts or the retain model cannot be had."""
    sets = muse_on_model.load_sets(now.suite.place(settings.source), now.limit)

    def measure(subject: KeptSubject) -> MuseLog:
        return muse_on_model.evaluate(subject, sets)

    retain = _retain(settings.retain, now, read_muse_log, measure)
    result = muse_metrics.metrics(measure(now.subject()), retain)
    return Measured(result, _MUSE, digest_of_rows([sets.knowmem, sets.verbmem, sets.privleak]))


def _own_log(settings: Tofu, now: Measuring) -> str | None:
    """The log of the retain model that the run kept, where its recipe's suite asked the same questions."""
    asked, file = now.run.evaluate, now.run.directory.path / "eval" / "retain.json"
    if asked is None or (asked.split, asked.rows) != (settings.split, settings.rows) or not file.is_file():
        return None
    now.say(f"compared with the retain model's log that the run kept ({file})")
    return str(file)


def _retain(
    named: str | None, now: Measuring, read: Callable[[Path], Log], measure: Callable[[KeptSubject], Log]
) -> Log | None:
    """The log of what never saw the forgotten rows: a file, or measured here; None where nothing is named."""
    if named is None:
        return None
    place = now.suite.place(named)
    if Path(place).is_file() or named.endswith((".json", ".json.gz")):
        return read(Path(place))
    now.say(f"measuring the retain model {named}")
    try:
        return measure(now.subject(located(place, None)))
    finally:
        free()
