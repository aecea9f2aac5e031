"""The command line with parts of eight rows that stay where they are, in a process that may kill itself at one of them.

With ALIGN_TEST_DIE_AT=RANK:NUMBER the process of that rank is killed without warning when it has written so many parts.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

from align.cli.main import main
from align.eval import kept
from align.eval.suites import measuring, run

if __name__ == "__main__":
    rank, _, number = os.environ.get("ALIGN_TEST_DIE_AT", "").partition(":")
    written = 0
    write = kept.write_atomically

    def counted(path: Path, content: str | bytes) -> None:
        global written
        write(path, content)
        written += 1
        if os.environ.get("RANK", "0") == rank and written == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    kept.write_atomically = counted
    measuring.Kept = partial(kept.Kept, size=8)
    run.shutil.rmtree = lambda *_, **__: None
    sys.exit(main())
