"""What ``align launch`` starts: accelerate's launcher without words of its own, and with the exit code of the run.

    python -m align.runs.workers RUN [words of accelerate launch]

RUN is the run's directory.

The training processes write where this one would, and what they print is all that is shown. torch's launcher reports a
process that failed in a page of its own and exits 1 whatever the cause; here the exit code is that of the run, 128 and
the signal's number where a process was ended by one.
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from align.runs.search import not_here

if __name__ == "__main__":
    not_here()

import psutil

from align.errors import Exit, told
from align.runs.go_on import go_on

SAVING = 600  # seconds that processes have to save where their launcher is told to end
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main(words: Sequence[str]) -> int:
    """Launch, wait, and return the exit code."""
    _end_with_parent()
    shown, sys.stderr = sys.stderr, io.StringIO()  # of this process alone: others inherit the file behind it
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP guesses that no parameter goes unused
    with tempfile.TemporaryDirectory(prefix="align-launch-") as folder:
        # torch's launcher would leave a folder of its own behind; its processes say there whether one has spoken
        code, said = _launch(["--log_dir", folder, *words[1:]])
        if said and code > 128:  # unless another process has said it, with what to do
            said = "" if any(Path(folder).rglob("spoken")) else f"{said} {go_on(Path(words[0]))}"
    if said:
        print(said, file=shown, flush=True)
    return code


def _launch(words: Sequence[str]) -> tuple[int, str]:
    """The exit code, and what is to be said of it."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(list(words)))
    except ChildFailedError as error:
        return outcome({rank: failure.exitcode for rank, failure in error.failures.items()})
    except subprocess.CalledProcessError as error:  # of one process
        return outcome({0: error.returncode})
    except SignalException:  # `align launch` is gone; the processes were told, and have said how they ended
        return outcome({})
    except Exception as error:  # of accelerate, before any process was started
        return Exit.USAGE, f"accelerate cannot start this ({told(error)})."
    return Exit.OK, ""


def outcome(codes: Mapping[int, int]) -> tuple[int, str]:
    """The exit code of a run some of whose processes failed, and a line about one that could not speak any more.

    Args:
        codes: rank to exit code, negative for a signal, as ``subprocess`` gives it.
    """
    # SIGTERM is what the launcher ends the others with
    killed = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    if killed:
        rank = min(killed)
        name = signal.Signals(killed[rank]).name
        why = ", often the system's answer where its memory is used up" if name == "SIGKILL" else ""
        return 128 + killed[rank], f"Rank {rank} was ended by {name}{why}."
    spoken = [code for _, code in sorted(codes.items()) if code > 0]
    ours = [code for code in spoken if code in (Exit.USAGE, Exit.DOES_NOT_FIT, Exit.GUARD)]
    return (ours or spoken or [128 + signal.SIGTERM])[0], ""


def _end_with_parent() -> None:
    """Hand SIGTERM to the training processes, and on Linux receive it when ``align launch`` is killed."""

    def end(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            child.terminate()

    signal.signal(signal.SIGTERM, end)  # torch's launcher puts its own in place of it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
