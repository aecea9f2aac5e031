"""How a worker of the distributed tests runs: one case after the other, and all processes leave together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import set_seed

from align.runs.processes import leave_together


def run_cases(run: Callable[[Path, str, str], None]) -> None:
    """Call ``run(folder, label, case)`` for each case of the command line, ``FOLDER CASE...``, from the same seed."""
    folder, label = Path(sys.argv[1]), os.environ["ALIGN_TEST_LABEL"]
    for case in sys.argv[2:]:
        set_seed(0)
        run(folder, label, case)
    leave_together()
