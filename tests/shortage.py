"""Memory or disk that ends where a test says, with a real error or a GPU's words."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def at_most(*, rows: int | None = None, positions: int | None = None, words: str | None = None) -> Iterator[None]:
    """Within, an embedding reads no more rows or positions at a time; ``words`` are a GPU's, else a CPU's come."""

    def look(module: nn.Module, given: Any) -> None:
        if not isinstance(module, nn.Embedding):
            return
        ids = given[0]
        if (rows is not None and ids.shape[0] > rows) or (positions is not None and ids.numel() > positions):
            if words is not None:
                raise torch.OutOfMemoryError(words)
            torch.empty(2**50)

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def files_of(size: int) -> Iterator[None]:
    """Within, no file may be longer than so many bytes, as after ``ulimit -f``."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
