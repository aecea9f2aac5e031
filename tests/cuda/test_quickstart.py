"""The quickstart on a GPU beside the same machine's CPU. The one test that compares times."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

LIMIT = 170  # seconds


def timed(folder: Path, **variables: str) -> float:
    """Seconds of the quickstart in a process of its own."""
    folder.mkdir()
    command = [sys.executable, "-m", "align.recipes.quickstart", "--out", str(folder / "out")]
    environment = {**os.environ, **variables}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "out/unlearning.png").is_file()
    return time.perf_counter() - began


def test_the_quickstart_is_faster_than_on_the_same_machines_cpu(gpu: torch.device, tmp_path: Path) -> None:
    """Both at once: each keeps one core busy, so that they do not wait for each other, and the test is half as long."""
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(timed, tmp_path / "cpu", CUDA_VISIBLE_DEVICES="")
        fast = pool.submit(timed, tmp_path / "gpu")
        on_cpu, on_gpu = slow.result(), fast.result()
    print(f"quickstart: {on_gpu:.0f} s on {torch.cuda.get_device_name()}, {on_cpu:.0f} s on the CPU")
    assert on_gpu < on_cpu
