"""The quickstart on a GPU beside the same machine's CPU. The one test that compares times."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

COMMAND = [sys.executable, "-m", "align.recipes.quickstart", "--out", "out"]
LIMIT = 150  # seconds


def start(folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    """The quickstart in a process and a folder of its own; what it says goes into ``said.txt``."""
    folder.mkdir()
    with (folder / "said.txt").open("wb") as said:
        environment = {**os.environ, **variables}
        return subprocess.Popen(COMMAND, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)


def test_the_quickstart_ends_sooner_than_on_the_same_machines_cpu(gpu: torch.device, tmp_path: Path) -> None:
    """Both are started at once, each busy on one core, and the slower one is not waited for."""
    began = time.monotonic()
    on_cpu, on_gpu = start(tmp_path / "cpu", CUDA_VISIBLE_DEVICES=""), start(tmp_path / "gpu")
    try:
        while on_cpu.poll() is None and on_gpu.poll() is None and time.monotonic() - began < LIMIT:
            time.sleep(0.2)
        ended = (on_cpu.poll(), on_gpu.poll())
    finally:
        for process in (on_cpu, on_gpu):
            process.kill()
            process.wait()
    print(f"the quickstart: {time.monotonic() - began:.0f} s on {torch.cuda.get_device_name()}")
    said = {name: (tmp_path / name / "said.txt").read_text()[-1000:] for name in ("cpu", "gpu")}
    assert ended == (None, 0), f"(exit code on the CPU, on the GPU), None is still running: {ended}; {said}"
    assert (tmp_path / "gpu/out/unlearning.png").is_file()
