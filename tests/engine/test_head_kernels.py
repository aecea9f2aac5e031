"""The head's Triton kernels without a GPU: interpreted on CPU tensors, and compiled for GPUs that are not here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from align.engine import fused

pytest.importorskip("triton", reason="triton is not installed; it comes with torch for CUDA")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What ``kernels_worker.py`` found; a process of its own, since Triton chooses to interpret when it is imported."""
    worker = Path(__file__).with_name("kernels_worker.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(worker)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernels_equal_torchs_operations(interpreted: dict[str, Any]) -> None:
    logprobs, gradients = interpreted["differences"]["torch.float32"]
    assert logprobs <= 2e-6
    assert gradients <= 2e-7
    # the last place of a gradient of up to 2 in bfloat16
    assert interpreted["differences"]["torch.bfloat16"][1] <= 2**-7


def test_the_head_with_kernels_equals_float64(interpreted: dict[str, Any]) -> None:
    plain, capped = interpreted["head"]
    assert 0 < plain <= 1e-6
    assert 0 < capped <= 1e-6


def test_kernels_at_extreme_logits(interpreted: dict[str, Any]) -> None:
    half, half_gradient, *others = interpreted["extreme"]
    assert half == pytest.approx(-math.log(2), abs=1e-7)
    assert half_gradient == pytest.approx(0.5, abs=1e-3)  # float32 steps by 1e-3 at 10,000
    assert others == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("generation", [80, 90])
def test_kernels_compile_for_a_gpu_that_is_not_here(generation: int, tmp_path: Path) -> None:
    """Down to machine code; memory is read and written in pieces of 128 bits, which a wrong layout would lose."""
    words = [sys.executable, str(Path(__file__).with_name("compile_worker.py")), str(generation)]
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert [kernel["backward"] for kernel in kernels] == [False, False, True, True]
    for kernel in kernels:
        assert kernel["cubin"] > 1000
        assert kernel["read"] == 4  # sixteen logits for each thread
        assert kernel["written"] == (2 if kernel["backward"] else 0)  # in bfloat16


def answer(monkeypatch: pytest.MonkeyPatch, found: Any, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """What ``fused_works`` says of a GPU on which the small case gives ``found``."""

    def differences(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(fused, "differences", differences)
    return fused.fused_works.__wrapped__(torch.device("cuda"), dtype)


def test_kernels_that_fail_or_differ_are_left_alone_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(monkeypatch, (1e-6, 4e-3)) is None
    assert answer(monkeypatch, (1e-6, 4e-3), torch.float32) == (
        "the fused kernels differ here from torch's own operations, log-probs by 1.0e-06 nats and gradients by 4.0e-03"
    )
    assert answer(monkeypatch, (math.nan, 0.0)) == (
        "the fused kernels differ here from torch's own operations, log-probs by nan nats and gradients by 0.0e+00"
    )
    assert answer(monkeypatch, ImportError("No module named 'triton'")) == "triton is not installed"
    assert answer(monkeypatch, RuntimeError("ptxas is missing\nand more")) == (
        "the fused kernels fail here (RuntimeError: ptxas is missing)"
    )
    assert answer(monkeypatch, (0.0, 0.0), torch.float64) == "there are no fused kernels for float64"
