"""One process of a run that is killed and resumed: trains recipes one after the other, as ``align.train`` does.

    python tests/distributed/resume_worker.py [--resume] RECIPE...

With ALIGN_TEST_DIE_AT the process of ALIGN_TEST_RANK is killed when that step begins.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from align.errors import UserError
from align.recipe import load_recipe
from align.runs.processes import leave_together
from align.train import end, run


class Dies(TrainerCallback):
    """Kills its process."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        here = args.process_index == int(os.environ.get("ALIGN_TEST_RANK", "1"))
        if here and state.global_step == int(os.environ["ALIGN_TEST_DIE_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)


def main(words: list[str]) -> int:
    if "ALIGN_TEST_DIE_AT" in os.environ:
        DEFAULT_CALLBACKS.append(Dies())
    for file in words:
        if file == "--resume":
            continue
        try:
            run(load_recipe(file), resume="--resume" in words)
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            return 2
    leave_together()
    return 0


if __name__ == "__main__":
    end(main(sys.argv[1:]))
