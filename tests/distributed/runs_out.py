"""align.train, in which rank 1 runs out of memory in its third step."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from align.train import end, main


class RunsOut(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if os.environ["RANK"] == "1" and state.global_step == 2:
            torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: torch.empty(2**50))


if __name__ == "__main__":
    DEFAULT_CALLBACKS.append(RunsOut)
    end(main())
