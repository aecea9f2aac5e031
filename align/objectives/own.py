"""Failures in an objective of the user's own, told with their line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from align.errors import UserError, ran_out, told
from align.objectives.base import Objective, WeightedSum


@contextmanager
def failures_told(objective: Objective) -> Iterator[None]:
    """While ``objective`` is called.

    Raises:
        UserError: in place of an error in an objective of the user's, with file and line where it passed through them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        own = _own(objective)
        if not own or ran_out(error):
            raise
        steps = list(walk_tb(error.__traceback__))
        if isinstance(error, NotImplementedError):
            missing = steps[-1][0].f_code.co_name
            raise UserError(
                f"{' or '.join(own.values())} does not say its loss: write the method {missing}."
            ) from error
        lines = [(f.f_code.co_filename, line) for f, line in steps if f.f_globals.get("__name__") in own]
        place = f"in {Path(lines[-1][0]).name}, line {lines[-1][1]}" if lines else f"({', '.join(own.values())})"
        raise UserError(f"The objective failed {place}: {told(error)}.") from error


def _own(objective: Objective) -> dict[str, str]:
    """Modules of the user's to the names of the classes that are used of them."""
    parts = [part for part, _ in objective.parts] if isinstance(objective, WeightedSum) else [objective]
    kinds = (type(part) for part in parts)
    return {kind.__module__: kind.__name__ for kind in kinds if kind.__module__.partition(".")[0] != "align"}
