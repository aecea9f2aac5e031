"""kill -9 of a rank, and the run goes on: bitwise on the same processes, in the same order of rows on others."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.launching import HERE, ROOT, command, environment, need
from safetensors.torch import load_file
from saved_model import save_model

RECIPE = """
name: {name}
seed: 3
model: {{id: {folder}/model, dtype: float32{lora}}}
data: {{train: {{path: {folder}/pairs.jsonl}}, max_length: 128}}
objective: {{name: dpo}}
reference: {{store_dir: {folder}/reference-{name}}}
watch: {{probe_pairs: 3, report: false, every: 2, probe_answers: 2}}
train: {{max_steps: 8, per_device_train_batch_size: {size}, gradient_accumulation_steps: {steps}, learning_rate: 5e-3,
         logging_steps: 2, save_steps: 3, activation_checkpointing: false, {more}}}
output: {folder}/runs/{name}
"""
LORA = ", lora: {rank: 4, alpha: 8, dropout: 0.1}"


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("resume")
    save_model(made / "model")
    words = random.Random(1)

    def text(low: int, high: int) -> str:
        return " ".join(f"w{words.randrange(3, 97)}" for _ in range(words.randint(low, high)))

    pairs = [{"prompt": text(3, 9), "chosen": text(1, 8), "rejected": text(1, 8)} for _ in range(37)]
    (made / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return made


def written(folder: Path, label: str, name: str, kind: str, size: int = 2, steps: int = 1) -> str:
    """The file of a recipe that trains four examples in a step of two processes."""
    more = "ddp_backend: gloo" if label.startswith("zero") else "use_cpu: true"
    lora = LORA if kind == "lora" else ""
    file = folder / f"{name}.yaml"
    file.write_text(RECIPE.format(name=name, folder=folder, lora=lora, size=size, steps=steps, more=more))
    return str(file)


def train(label: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Train recipes in two processes of a backend, or in one of none."""
    need(label)
    done = subprocess.run(
        [*command(label, HERE / "resume_worker.py"), *words], env=environment(label) | env, cwd=ROOT,
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    print(done.stdout[-4000:], done.stderr[-4000:])
    return done


def recorded(folder: Path, name: str) -> list[tuple]:
    """Losses, gradient norms, margins and readings of a run, by step."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    keys = ("loss", "grad_norm", "rewards/margins", "probe", "answer_tokens", "own_text")
    return [(r["step"], *(r.get(key) for key in keys)) for r in map(json.loads, lines)]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / "runs" / name / "model").glob("*.safetensors")
    return load_file(file)


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "label", ["ddp", *(pytest.param(x, marks=pytest.mark.slow) for x in ("fsdp2", "zero2", "zero3"))]
)
def test_a_rank_is_killed_and_the_run_goes_on_to_the_last_bit(folder: Path, label: str) -> None:
    kinds = ("full", "lora")
    whole = [written(folder, label, f"{label}-{kind}-whole", kind) for kind in kinds]
    cut = [written(folder, label, f"{label}-{kind}-cut", kind) for kind in kinds]
    assert train(label, *whole).returncode == 0
    for file in cut:
        assert train(label, file, ALIGN_TEST_DIE_AT="5").returncode != 0
    done = train(label, "--resume", *cut)
    assert done.returncode == 0
    assert done.stdout.count("resuming from checkpoint-3") == len(kinds)
    for kind in kinds:
        mine, theirs = (f"{label}-{kind}-{name}" for name in ("cut", "whole"))
        assert recorded(folder, mine) == recorded(folder, theirs)
        assert len(recorded(folder, mine)) > 6
        assert same(weights(folder, mine), weights(folder, theirs))
