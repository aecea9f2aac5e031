"""What a device has, what an error of it says, and that both end as a sentence with exit code 3."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from align.errors import DoesNotFit, ran_out
from align.runs.memory import Shortage, amount, answered, memory, tensor_bytes, usual_device

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CUDA_WORDS = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is "
    "free. Process 17 has 77.85 GiB memory in use. Of the allocated memory 70.00 GiB is allocated by PyTorch, with "
    "120.00 MiB allocated in private pools (e.g., CUDA Graphs), and 5.00 GiB is reserved by PyTorch but unallocated."
)


def test_what_a_cuda_error_says_stands_above_what_is_read_later() -> None:
    shortage = Shortage.of(torch.OutOfMemoryError(CUDA_WORDS), CPU)
    gib = 2**30
    assert shortage.asked == int(2.5 * gib)
    assert (shortage.memory.total, shortage.memory.free) == (int(79.10 * gib), int(1.25 * gib))
    assert (shortage.memory.held, shortage.memory.spare) == (70 * gib, 5 * gib)
    assert shortage.memory.room == int(76.25 * gib)
    assert shortage.sentence("in step 3") == (
        "Out of memory in step 3: cpu has 79.1 GiB, 1.2 GiB of it free, and 2.5 GiB more were asked for. 5.0 GiB are "
        "kept in pieces too small for that: the environment variable PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True "
        "joins them."
    )


def test_a_build_of_torch_for_gpus_on_a_machine_without_one_computes_on_its_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There torch names the accelerator that it was built for, unless it is asked for one that is here."""

    def built_for(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", built_for)
    assert usual_device() == CPU
    for folder in ("align", "eval"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            uses = file.read_text(encoding="utf-8").count("current_accelerator(")
            allowed = {"memory.py": 2, "doctor.py": 1}  # one of them behind accelerator.is_available() each
            assert uses <= allowed.get(file.name, 0), f"{file}: usual_device() says what is here"


def test_real_failures_of_the_cpu_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert ran_out(caught.value)
    assert Shortage.of(caught.value).asked == 4 * 2**50
    with pytest.raises(MemoryError) as numpy_error:
        np.empty(2**50)
    assert ran_out(numpy_error.value)
    assert Shortage.of(numpy_error.value).asked == 8 * 2**50


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError(CUDA_WORDS), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GiB)"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_shortage_is_answered(error: Exception, known: bool) -> None:
    kind: type[Exception] = DoesNotFit if known else type(error)
    with pytest.raises(kind) as caught, answered(lambda e: f"told: {e}"):
        raise error
    assert str(caught.value) == (f"told: {error}" if known else str(error))
    if known:
        assert caught.value.exit_code == 3  # type: ignore[attr-defined]
        assert caught.value.__cause__ is error


def test_who_stands_nearest_answers() -> None:
    with pytest.raises(DoesNotFit, match=r"^inner$"), answered(lambda e: "outer"), answered(lambda e: "inner"):
        torch.empty(2**50)


def test_the_machine_is_read() -> None:
    before = memory(CPU)
    kept = torch.ones(2**24)
    after = memory(CPU)
    assert 0 < before.free < before.total
    assert 0.9 * kept.nbytes < after.held - before.held < 1.5 * kept.nbytes
    assert before.room == before.held + before.free


def test_storages_count_once_and_only_on_their_device() -> None:
    whole = torch.zeros(1000)
    seen: set[int] = set()
    assert tensor_bytes([whole, whole[10:20], whole.view(10, 100)], CPU, seen) == 4000
    assert tensor_bytes([whole, torch.zeros(5, dtype=torch.float64)], CPU, seen) == 40
    assert tensor_bytes([torch.zeros(7, device="meta")], CPU, set()) == 0
    shard = torch.zeros(3)
    whole.ds_tensor = shard  # type: ignore[attr-defined]  # as ZeRO-3 keeps a parameter's part
    assert tensor_bytes([whole], CPU, set()) == 12


def test_amounts() -> None:
    assert [amount(n) for n in (3 * 2**20, 2**30, 1536 * 2**30)] == ["3.0 MiB", "1.0 GiB", "1,536.0 GiB"]


def test_a_process_that_is_allowed_no_more() -> None:
    """A real failure of the CPU's allocator behind ``ulimit -v``, from a command to its exit code."""
    code = """
import resource, sys
import torch
from align.cli import main, verbs
address = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (address + 2**28, address + 2**28))
verb = verbs.Verb("fill", "fill the memory", (), lambda args: len(torch.ones(2**30)))
main.VERBS = (verb,)
sys.exit(main.main(["fill"]))
"""
    if sys.platform != "linux":
        pytest.skip("only Linux keeps to RLIMIT_AS")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("Out of memory: cpu has ")
    assert said.endswith(" and 4.0 GiB more were asked for.")
    assert "Traceback" not in done.stderr
    free, unit = said.split(", ")[1].split()[:2]
    # of what the limit leaves, not of what the machine has
    assert unit == "MiB" or float(free) <= 0.25
