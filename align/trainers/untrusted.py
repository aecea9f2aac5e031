"""Checkpoints are read without running what a pickle in them may hold.

Transformers asks torch for tensors alone. DeepSpeed does not, and sharded checkpoints of FSDP2 have an index that is a
plain pickle: while a checkpoint is read here, both get tensors and the types that such files are made of, and nothing
else. A malicious file ends in an error.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata

_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_PLAIN = {("pathlib", "PosixPath"), ("torch", "Size"), ("torch.serialization", "_get_layout")}
_PLAIN |= {("torch.distributed.checkpoint.filesystem", "_StorageInfo")}
_PLAIN |= {(metadata.__name__, name) for name in vars(metadata) if isinstance(vars(metadata)[name], type)}


@contextmanager
def weights_only() -> Iterator[None]:
    """Read tensors and plain values alone, whoever asks for more."""
    before, kept = os.environ.get(_VARIABLE), filesystem.pickle
    os.environ[_VARIABLE] = "1"
    filesystem.pickle = SimpleNamespace(load=_load, dump=pickle.dump)  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals(_deepspeed_kinds()):
            yield
    finally:
        filesystem.pickle = kept
        del os.environ[_VARIABLE]
        if before is not None:
            os.environ[_VARIABLE] = before


def _load(file: Any) -> Any:
    """The index of a sharded checkpoint."""
    return _Index(file).load()


class _Index(pickle.Unpickler):
    """Makes what an index is made of."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the index of a checkpoint does not hold {module}.{name}")


def _deepspeed_kinds() -> list[Any]:
    """Types in DeepSpeed's checkpoints; none where it is not used."""
    if "deepspeed" not in sys.modules:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
