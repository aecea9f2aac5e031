"""Set before anything imports triton: without a GPU its kernels run in its interpreter, on CPU tensors."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What DeepSpeed compiles at its first start, a minute of a core, is compiled once for all workers."""
    ours = tmp_path_factory.getbasetemp()
    shared = ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(shared / "extensions"))
