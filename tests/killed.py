"""align.train in a process that is killed without warning when the step of ALIGN_TEST_DIE_AT begins."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from align.train import main


class Dies(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == int(os.environ["ALIGN_TEST_DIE_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    DEFAULT_CALLBACKS.append(Dies)
    sys.exit(main())
