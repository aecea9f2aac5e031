"""Failures in an objective of the user's own, told with their line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align.errors import UserError, ran_out, told
from align.objectives.base import Objective, WeightedSum


@contextmanager
def failures_told(objective: Objective) -> Iterator[None]:
    """While ``objective`` is called.

    Raises:
        UserError: in place of an error that passed through a class of the user's, with file and line.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = _own_line(objective, error)
        if place is None or ran_out(error):
            raise
        raise UserError(f"The objective failed in {place}: {told(error)}.") from error


def _own_line(objective: Objective, error: Exception) -> str | None:
    """The last line of the user's that an error passed through; None where it passed through none."""
    parts = [part for part, _ in objective.parts] if isinstance(objective, WeightedSum) else [objective]
    own = {type(part).__module__ for part in parts if type(part).__module__.partition(".")[0] != "align"}
    found, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_globals.get("__name__") in own:
            found = f"{Path(step.tb_frame.f_code.co_filename).name}, line {step.tb_lineno}"
        step = step.tb_next
    return found
