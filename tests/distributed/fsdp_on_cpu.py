"""Lets accelerate 1.15 use FSDP2 over gloo, so that the sharded code can be tested without a GPU. For tests only.

accelerate honours ACCELERATE_USE_FSDP for GPUs and other accelerators, not for several CPU processes, where it quietly
makes plain DDP. Here several CPU processes are presented to it as accelerators, which it then turns into FSDP.

    ACCELERATE_USE_CPU=true accelerate launch --config_file tests/distributed/fsdp2_cpu.yaml \
        tests/distributed/fsdp_on_cpu.py align.train FILE
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import torch
from accelerate.state import DistributedType, PartialState


def allow() -> None:
    """Call before any TrainingArguments are made. Does nothing unless FSDP is asked for."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    original = PartialState.__init__

    def patched(self: PartialState, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU
            self.device = torch.device("cpu")

    PartialState.__init__ = patched  # type: ignore[method-assign]


if __name__ == "__main__":
    allow()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
