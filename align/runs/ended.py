"""The last words of a run that did not come to its end, said once by all its processes together."""

from __future__ import annotations

import traceback

from align.errors import Stopped, UserError, lost_peer
from align.runs.go_on import go_on
from align.runs.signals import LOST, SIGNALS, Interrupted
from align.runs.speaker import lost_one, rank, several, speak, spoken, wait_for_another

# seconds in which the first process says what all raise; where a guard stopped the run, it writes the report before
_PATIENCE, _REPORT = 3.0, 60.0


def ended(error: BaseException) -> int:
    """Say why the run ended unless another process has said it; the exit code to leave with.

    A sentence that is not that of all processes begins with the rank. Raises ``error`` again where it is a fault of the
    program and there is one process, whose traceback Python shows.
    """
    # a launcher ends all processes when one of them has left, which must not change what the others leave with
    SIGNALS.over(leaves=several())
    if isinstance(error, UserError):
        return _mistake(error)
    if isinstance(error, KeyboardInterrupt):
        if spoken() is None and lost_one():
            return speak(f"{LOST} {go_on(SIGNALS.run)}", 1)
        return spoken() or speak(interrupted(error), getattr(error, "exit_code", 130))
    if not several():
        raise error
    if lost_peer(error):
        return wait_for_another(1.0) or speak(f"{LOST} {go_on(SIGNALS.run)}", 1)
    lines = "".join(traceback.format_exception(error))
    fault = f"rank {rank()}: {type(error).__name__}: {error}"
    return spoken() or speak(f"{lines}{fault}\nThis is no mistake of the recipe: the lines above say where it is.", 1)


def interrupted(error: KeyboardInterrupt) -> str:
    """What is said after a signal that ended the work where it was."""
    by = f" by {error}" if isinstance(error, Interrupted) else ""
    return f"Interrupted{by}. {go_on(SIGNALS.run)}"


def _mistake(error: UserError) -> int:
    sentence, code = str(error), int(error.exit_code)
    if not several():
        return speak(sentence, code)
    if not error.shared:
        return spoken() or speak(f"rank {rank()}: {sentence}", code)
    if rank():  # the first process says what all of them raise; where it does not, this one raised it alone
        patience = _REPORT if isinstance(error, Stopped) else _PATIENCE
        return wait_for_another(patience) or speak(f"rank {rank()}: {sentence}", code)
    return spoken() or speak(sentence, code)
