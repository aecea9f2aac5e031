"""On a GPU: DPO steps of a 1B and a 7B shape, ours, TRL's, TRL's with Liger layers and padded rows of ours.

    python benchmarks/gpu.py --out FOLDER       results.json, a table and a picture in FOLDER

Random weights, so nothing is downloaded; every way in a process of its own, one after the other. A way that runs out of
memory, fails or takes too long is a row that says so. MFU is over the matrix rate that is measured here first.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_report import draw, table
from gpu_step import WAYS, device, now
from rows import hh_file, hh_rows, made_rows
from shapes import SHAPES, Shape

HERE = Path(__file__).parent
BATCHES = 4  # different ones of each kind of rows
LIMIT = 200  # seconds of one process at most
LEAST = 30  # seconds in which a process is still worth starting
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "triton", "liger-kernel")


def matrix_rate(size: int, seconds: float) -> float:
    """Floating point operations a second of square bf16 products: the best of five stretches of ``seconds`` / 5."""
    a, b = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        began, count = now(), 0
        while now() - began < seconds / 5:
            for _ in range(4):
                a @ b
            count += 4
        best = max(best, 2.0 * size**3 * count / (now() - began))
    return best


def rows_of(shape: Shape) -> tuple[dict[str, Any], dict[str, str]]:
    """Batches by kind of rows, and why a kind has none."""
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for kind, size in shape.batches.items():
        count = BATCHES * size
        if kind != "hh":
            rows = made_rows(kind, count, min(32_000, shape.vocabulary), 0)
        elif hh_file().exists():
            rows = hh_rows(count, 0)
        else:
            missing[kind] = f"{hh_file().name} is not there; set ALIGN_TEST_DATA to the folder that holds hh_rlhf"
            continue
        found[kind] = [rows[i : i + size] for i in range(0, count, size)]
    return found, missing


def started(script: str, options: list[str], out: Path, end: float) -> dict[str, Any]:
    """What a process wrote into ``out``; where it did not end well, with its last words as ``failed``.

    ``end`` is when everything must be over, on the clock of ``time.monotonic``.
    """
    began = time.monotonic()
    limit = min(LIMIT, end - began)
    if limit < LEAST:
        return {"failed": "not started, since the time was over (--seconds)"}
    failed = None
    try:
        command = [sys.executable, str(HERE / script), *options, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            failed = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        failed = f"not finished after {limit:.0f} s"
    found = json.loads(out.read_text()) if out.exists() else {}
    said = f"{time.monotonic() - began:.0f} s{f', {failed}' if failed else ''}"
    print(f"  {script} {' '.join(options[:4])}: {said}", file=sys.stderr, flush=True)
    return found | ({"failed": failed} if failed else {})


def measure_shape(shape: Shape, rate: float, folder: Path, end: float) -> dict[str, Any]:
    """Every way on every kind of rows, and the grid where the shape has one; what matters least comes last."""
    batches, missing = rows_of(shape)
    rows = folder / "rows.json"
    rows.write_text(json.dumps(batches))
    ways: dict[str, Any] = {}
    grid = None
    for way in WAYS:
        options = ["--shape", shape.name, "--way", way, "--rows", str(rows), "--rate", str(rate)]
        found = started("gpu_step.py", options, folder / f"{shape.name}-{way}.json", end)
        failed = found.pop("failed", None)
        ways[way] = {kind: found.get(kind, {"failed": failed}) for kind in batches}
        ways[way] |= {kind: {"skipped": reason} for kind, reason in missing.items()}
        if shape.grid and grid is None:
            grid = started("gpu_grid.py", ["--shape", shape.name], folder / f"{shape.name}-grid.json", end)
    return {"ways": ways, "grid": grid}


def about(rate: float) -> dict[str, Any]:
    """Machine and versions."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "matrix_operations_per_second": rate,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, results.txt and results.png")
    parser.add_argument("--shapes", default="1b,7b-lora", help=f"of {','.join(SHAPES)}; tiny is a rehearsal for a CPU")
    parser.add_argument("--seconds", type=float, default=450.0, help="when to stop starting processes (default 450)")
    args = parser.parse_args(argv)
    names = args.shapes.split(",")
    if unknown := [name for name in names if name not in SHAPES]:
        parser.error(f"no shape is called {unknown[0]}; there are {', '.join(SHAPES)}")
    if not torch.cuda.is_available() and names != ["tiny"]:
        parser.error("there is no GPU here; on a CPU only --shapes tiny can be run, which rehearses this benchmark")
    began = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    rate = matrix_rate(8192, 1.0) if torch.cuda.is_available() else matrix_rate(256, 0.2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    report: dict[str, Any] = {"about": about(rate), "shapes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            report["shapes"][name] = measure_shape(SHAPES[name], rate, Path(folder), began + args.seconds)
            report["seconds"] = time.monotonic() - began
            # after each shape, so that an end in the middle leaves what was measured
            (args.out / "results.json").write_text(json.dumps(report, indent=1))
            (args.out / "results.txt").write_text(table(report) + "\n")
            draw(report, args.out / "results.png")
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
