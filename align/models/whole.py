"""The policy as it generates, however it is wrapped for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule

from align.compat import unwrap_model_for_generation
from align.runs.memory import memory

_ROOM = 0.7  # share of the free memory that whole weights may take; a cache of keys and values comes beside them


@contextmanager
def for_generation(model: Any, accelerator: Any) -> Iterator[Any]:
    """TRL's unwrapped model; under FSDP2 its weights stay whole from the first token to the last where they fit.

    FSDP2 would put them together again for each token. ZeRO-3 puts them together once in TRL's way. Every process calls
    it, since they must agree.
    """
    with unwrap_model_for_generation(model, accelerator) as plain:
        parts = [part for part in plain.modules() if isinstance(part, FSDPModule)]
        if not parts or not _fits(plain, accelerator):
            yield plain
            return
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
        try:
            yield plain
        finally:
            for part in parts:
                part.set_reshard_after_forward(bool(accelerator.state.fsdp_plugin.reshard_after_forward), recurse=False)
                part.reshard()


def _fits(model: Any, accelerator: Any) -> bool:
    """Whether every process has room for whole weights."""
    whole = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    mine = whole <= _ROOM * memory(accelerator.device).free
    return all(gather_object([mine])) if accelerator.num_processes > 1 else mine
