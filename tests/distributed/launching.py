"""Starts the worker of the distributed tests as one process, or as two under DDP, FSDP2 or ZeRO."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from saved_model import save_model
from zoo import tiny_classifier

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SINGLE = "single"
CONFIGS = {label: ROOT / f"recipes/accelerate/cpu2-{label}.yaml" for label in ("ddp", "fsdp2", "zero2", "zero3")}

# where DeepSpeed compiles: in the user's cache a build that was killed leaves a lock, and every later run waits for it
BUILD = tempfile.TemporaryDirectory(prefix="align-extensions-")


def environment(label: str) -> dict[str, str]:
    """What a process is started with, whatever this one was."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_")) and k != "WORLD_SIZE"}
    env = kept | {
        "ALIGN_TEST_LABEL": label,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "PYTHONWARNINGS": "ignore",
    }
    zero = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", BUILD.name)}
    return env | (zero if label.startswith("zero") else {"ACCELERATE_USE_CPU": "true"})


def need(label: str) -> None:
    """Skip the test where DeepSpeed cannot run."""
    if not label.startswith("zero"):
        return
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: pip install 'align-llm[deepspeed]'")
    compiler = os.environ.get("CXX") or next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), "")
    if not shutil.which(compiler):
        pytest.skip("DeepSpeed on a CPU compiles its communication at the start and there is no C++ compiler")


def save_models(folder: Path) -> Path:
    """The models that cases of the worker start from."""
    save_model(folder / "model")
    save_model(folder / "tied", tie_word_embeddings=True)
    tiny_classifier("bert").save_pretrained(folder / "encoder")
    return folder


def command(label: str, script: Path, *options: str) -> list[str]:
    """How ``script`` is started under a backend, with more ``options`` for the launcher."""
    if label == SINGLE:
        return [sys.executable, str(script)]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS[label])]
    return [sys.executable, *launcher, *options, str(script)]


def launch(folder: Path, label: str, cases: tuple[str, ...], *options: str) -> None:
    """Run those cases of the worker that have no result yet, all in one launch.

    Raises:
        AssertionError: with what the worker printed, where a result is missing afterwards.
    """

    def missing() -> list[str]:
        return [case for case in cases if not (folder / f"{label}-{case}.json").exists()]

    if not (wanted := missing()):
        return
    done = _run(label, folder, wanted, options)
    # gloo seldom aborts a rank (docs/lab-notes.md): what is missing is run once more, and a second abort is a failure
    if missing() and "(exitcode: -6)" in done.stderr:
        done = _run(label, folder, missing(), options)
    # results, not the exit code: ranks are known to abort at interpreter exit after all work was done
    assert not missing(), f"{label}: no result for {missing()}\n{done.stdout[-3000:]}\n{done.stderr[-40000:]}"


def _run(label: str, folder: Path, cases: Sequence[str], options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    words = [*command(label, HERE / "worker.py", *options), str(folder), *cases]
    return subprocess.run(
        words, env=environment(label), cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
