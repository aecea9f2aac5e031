"""``align launch`` under every configuration for a CPU, and two launchers that meet as two machines do."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from distributed.launching import CONFIGS, ROOT, environment, need
from saved_model import save_model

RECIPE = """
name: run
seed: 3
model: {id: model, dtype: float32}
data: {train: {path: pairs.jsonl}, max_length: 128}
objective: {name: dpo}
reference: {store: false}
watch: {probe_pairs: 0, report: false}
train: {max_steps: 3, per_device_train_batch_size: 4, learning_rate: 5e-3, logging_steps: 1, save_strategy: 'no',
        lr_scheduler_type: constant, warmup_steps: 0,
        bf16: false, activation_checkpointing: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("launchers")
    save_model(made / "model")
    words = random.Random(1)

    def text() -> str:
        return " ".join(f"w{words.randrange(3, 97)}" for _ in range(words.randint(3, 9)))

    pairs = [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(24)]
    (made / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (made / "recipe.yaml").write_text(RECIPE)
    return made


def losses(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def align_launch(folder: Path, *words: str, label: str = "") -> subprocess.CompletedProcess[str]:
    """The command, started in a folder that is not the repository's."""
    env = environment(label)
    env.pop("ACCELERATE_USE_CPU", None)
    env.pop("DS_ACCELERATOR", None)
    command = [sys.executable, "-m", "align", "launch", "recipe.yaml", *words]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


FAST = ("cpu1", "cpu2-zero3")  # whatever one process does alone would stand still under ZeRO-3
NAMES = ("cpu1", "cpu2-ddp", "cpu2-fsdp2", "cpu2-zero2", "cpu2-zero3")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NAMES])
def test_every_configuration_for_a_cpu_trains_alike(folder: Path, name: str) -> None:
    need(name.removeprefix("cpu2-"))
    batch = "train.per_device_train_batch_size=8" if name == "cpu1" else "train.per_device_train_batch_size=4"
    done = align_launch(folder, "--on", name, f"output=runs/{name}", batch, label=name.removeprefix("cpu2-"))
    assert done.returncode == 0, done.stderr[-5000:]
    assert f"accelerate/{name}.yaml" in done.stdout.splitlines()[0]
    assert "Traceback" not in done.stderr
    found = losses(folder / "runs" / name)
    assert len(found) == 3
    assert len(set(found)) == 3
    if name != "cpu1" and (folder / "runs/cpu1").exists():
        assert found == pytest.approx(losses(folder / "runs/cpu1"), rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_a_mistake_is_said_once_and_is_the_exit_code(folder: Path) -> None:
    done = align_launch(folder, "--on", "cpu2-ddp", "output=runs/none", "--resume")
    assert done.returncode == 2
    assert done.stderr.count("holds no run to resume") == 1
    assert "Traceback" not in done.stderr
    assert "ChildFailedError" not in done.stderr


@pytest.mark.slow
def test_two_launchers_that_meet_train_as_one_does(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS["ddp"])]
    training = ["-m", "align.train", "recipe.yaml"]
    meet = ["--num_machines", "2", "--main_process_ip", "localhost", "--main_process_port", str(port)]
    env = environment("ddp") | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    how = {"env": env, "cwd": folder, "stdout": subprocess.DEVNULL}
    machines = [
        subprocess.Popen([*launch, *meet, "--machine_rank", str(rank), *training, "output=runs/two"], **how)
        for rank in (0, 1)
    ]
    assert [machine.wait(timeout=300) for machine in machines] == [0, 0]
    subprocess.run([*launch, *training, "output=runs/one"], check=True, timeout=300, **how)
    assert losses(folder / "runs/two") == losses(folder / "runs/one")
