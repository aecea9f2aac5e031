"""What ``align check`` says about a recipe's ``evaluate`` section: whether its questions and its target are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.eval.log import TofuLog
from align.eval.log_read import read_log
from align.eval.tofu_data import TofuSets, load_sets
from align.runs.models import located

if TYPE_CHECKING:
    from align.recipe.sections import Evaluate


def suite_lines(settings: Evaluate, base: Path) -> list[str]:
    """Sentences about the suite. Raises ``UserError`` where a run would fail on it; models are not loaded."""
    sets = load_sets(settings.split, settings.source, rows=settings.rows, base=base)
    counts = ", ".join(f"{name} {len(facts):,}" for name, facts in sets.sets.items())
    lines = [f"evaluate: {settings.suite} {settings.split} ({counts})", *(f"  {note}" for note in sets.notes)]
    if settings.retain is None:
        return [*lines, "  no retain model (evaluate.retain), so there will be no forget quality and no best step"]
    file = base / settings.retain
    if file.is_file():
        target_log(file, sets)
        return [*lines, f"  compared with the log {settings.retain}"]
    place = located(settings.retain, base)
    if settings.retain.startswith((".", "/")) and not Path(place).exists():
        raise UserError(f"evaluate.retain: {settings.retain}: no such file or folder.")
    return [*lines, f"  compared with the model {settings.retain}, which is not loaded here"]


def target_log(file: Path, sets: TofuSets) -> TofuLog:
    """The log of a retain model. Raises ``UserError`` where it cannot be read or is of another number of rows."""
    log = read_log(file)
    asked = log.sets.get("forget")
    found, wanted = 0 if asked is None else len(asked), len(sets.sets["forget"])
    if found < wanted or (found > wanted and sets.rows == "all"):
        raise UserError(
            f"evaluate.retain: {file} has {found} forget rows, but {sets.split} has {wanted}: name the log of a retain "
            "model on this split."
        )
    return log
