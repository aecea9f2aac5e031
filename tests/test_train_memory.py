"""A whole run that meets the end of memory: what it says, that it goes on from its checkpoint, and to the same end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from saved_model import rows, save_model
from shortage import at_most

from align.cli.main import main
from align.recipe import Recipe
from align.runs.directory import RunDirectory
from align.train import run

HERE = Path(__file__).parent
LIMIT = 135  # positions: those of the largest of the first four steps below


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and 40 pairs as text."""
    folder = tmp_path_factory.mktemp("world")
    save_model(folder / "model")
    texts = [
        {key.removesuffix("_ids"): " ".join(f"w{i}" for i in ids) for key, ids in row.items()} | {"prompt": "w9 w8"}
        for row in rows(40)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


def recipe(world: Path, out: Path) -> Path:
    """The file of six steps of DPO on eight pairs each, with a checkpoint after two and four."""
    made = Recipe.from_dict(
        {
            "name": "tiny",
            "seed": 25,  # the fifth step's rows are the longest of the six
            "model": {"id": str(world / "model"), "dtype": "float32"},
            "data": {"train": {"path": str(world / "train.jsonl")}},
            "objective": {"name": "dpo"},
            "reference": {"store": False},
            "watch": {"probe_pairs": 0, "report": False},
            "output": str(out / "{name}"),
            "train": {
                "max_steps": 6,
                "per_device_train_batch_size": 8,
                "learning_rate": 3e-3,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 2,
                "use_cpu": True,
                "gradient_checkpointing": False,
            },
        }
    )
    out.mkdir(exist_ok=True)
    file = out / "tiny.yaml"
    file.write_text(yaml.safe_dump(made.dump()))
    return file


def losses(out: Path) -> list[tuple[float, float]]:
    return [(r["loss"], r["grad_norm"]) for r in RunDirectory(out / "tiny").metrics() if "loss" in r]


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run is that nothing limits."""
    out = tmp_path_factory.mktemp("whole")
    run(Recipe.from_dict(yaml.safe_load(recipe(world, out).read_text())), echo=lambda _: None)
    return out


@pytest.fixture
def limited() -> Iterator[None]:
    """More than LIMIT positions at a time do not fit."""
    with at_most(positions=LIMIT, words="CUDA out of memory. Tried to allocate 20.00 MiB."):
        yield


def test_a_run_goes_on_with_the_budget_that_it_named(
    world: Path, tmp_path: Path, whole: Path, limited: None, capsys: Any
) -> None:
    file = str(recipe(world, tmp_path))
    assert main(["train", file]) == 3
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "Out of memory in step 5, in a micro-batch of 137 positions: cpu has " in said
    assert (
        f"\nSet train.max_tokens_per_microbatch: {LIMIT}, which changes no result (the largest that has passed; the "
        "longest example has 23), and go on with --resume.\n"
    ) in said
    assert f"\nThe last complete checkpoint is kept: {tmp_path}/tiny/checkpoint-4.\n" in said

    assert main(["train", file, "--resume"]) == 3  # nothing has changed yet
    assert "\nSet train.max_tokens_per_microbatch: 68, which changes no result (a guess" in capsys.readouterr().err
    assert main(["train", file, f"train.max_tokens_per_microbatch={LIMIT}", "--resume"]) == 0
    expected = losses(whole)
    assert len(expected) == 6
    for found, wanted in zip(losses(tmp_path), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_the_rank_that_ran_out_speaks_and_all_end(world: Path, tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", str(HERE / "distributed" / "runs_out.py")]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MASTER_PORT": "29611"}
    done = subprocess.run(
        [sys.executable, *command, str(recipe(world, tmp_path))], env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode != 0
    said = r"^rank 1: Out of memory on rank 1 of 2, in step 3, in a micro-batch of \d+ pos"
    assert len(re.findall(said, done.stderr, re.M)) == 1
    assert re.search(r"exitcode\s*: 3\b", done.stderr)
    assert RunDirectory(tmp_path / "tiny").checkpoints()[-1].name == "checkpoint-2"
