"""Memory that ends where a test says: real models, with a real error of the CPU's allocator or the words of a GPU's."""

from __future__ import annotations

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
