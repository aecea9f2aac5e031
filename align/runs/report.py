"""Writes the report of a run, or of several, as ``report.html`` and ``report.png``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.errors import UserError
from align.report.record import RunRecord
from align.runs.directory import METRICS
from align.runs.files import write_atomically

HTML, PNG = "report.html", "report.png"


def write_report(runs: Sequence[RunRecord], folder: Path, *, refresh: int | None = None) -> list[Path]:
    """Both files, each whole or as it was; ``refresh`` are seconds after which a browser reads the page again.

    Raises UserError where nothing was recorded, or runs cannot be compared.
    """
    from align.report.page.comparison import comparison
    from align.report.page.document import document
    from align.report.page.render import render
    from align.report.page.summary import picture

    for run in runs:
        if not run.metrics:
            why = " ".join([f"{run.path}: {METRICS} holds no record, so there is nothing to report yet.", *run.notes])
            raise UserError(why)
    page = document(runs[0]) if len(runs) == 1 else comparison(runs)
    files = {folder / HTML: render(page, refresh).encode(), folder / PNG: picture(page)}
    try:
        for path, content in files.items():
            write_atomically(path, content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}). Name another folder: --out.") from error
    return list(files)
