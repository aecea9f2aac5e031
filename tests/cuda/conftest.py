"""Tests for a GPU: `make test-cuda`. Elsewhere they are skipped, or rehearsed with ALIGN_CUDA_TESTS_ON=cpu."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# read when cuBLAS starts; without it matrix products refuse to be repeatable to the bit
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ON = os.environ.get("ALIGN_CUDA_TESTS_ON", "cuda")
NO_GPU = "no CUDA device here (ALIGN_CUDA_TESTS_ON=cpu rehearses these tests on the CPU)"


def pytest_configure() -> None:
    if ON not in ("cuda", "cpu"):
        raise pytest.UsageError(f"ALIGN_CUDA_TESTS_ON is {ON!r}; it must be cuda or cpu.")


def pytest_itemcollected(item: pytest.Item) -> None:
    if ON == "cuda":
        # kernels and drivers warn of the chip that they find; that is to be read, and says nothing of a result
        item.add_marker(pytest.mark.filterwarnings("default"))


def pytest_runtest_setup() -> None:
    if ON == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_GPU)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests of this folder compute."""
    return torch.device(ON)


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The GPU, for tests that a CPU cannot stand in for."""
    if device.type != "cuda":
        pytest.skip("a CPU cannot stand in for the GPU here")
    return device


@pytest.fixture
def repeatable() -> Iterator[None]:
    """Puts torch's choice of kernels back, which a run with train.full_determinism changes for good."""
    before = torch.are_deterministic_algorithms_enabled()
    variables = dict(os.environ)
    yield
    torch.use_deterministic_algorithms(before)
    os.environ.clear()
    os.environ.update(variables)
