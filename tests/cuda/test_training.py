"""Whole runs of recipes on the device: what they leave behind, that they resume to the bit, and the reference store."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from round_runs import make_world
from safetensors.torch import load_file

from align.recipe import Recipe
from align.runs.directory import RunDirectory
from align.train import RunResult, run

STEPS = 4
FORGET = {"forget": {"path": "forget.jsonl"}, "retain": {"path": "retain.jsonl"}}
SAMPLING = {"samples": 2, "max_new_tokens": 6, "batch_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": {"name": "dpo"}},
    "reward": {"objective": {"name": "bradley_terry", "center": 0.01}},
    "npo-retain": {"objective": [{"name": "npo"}, {"name": "nll", "branch": "retain", "weight": 1}], "data": FORGET},
    "hypo": {"objective": {"name": "hypo", "kl_weight": 0.1}, "sampling": SAMPLING},
    "superhf": {
        "objective": {"name": "superhf"},
        "sampling": SAMPLING,
        "judge": {"function": "round_rules:score"},
        "select": {"how": "top", "keep": 1},
        "data": {"train": {"path": "prompts.jsonl"}},
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, prompts, a rule that scores, pairs, and rows to forget and to retain."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    source = random.Random(11)

    def words(low: int, high: int) -> str:
        # a space before the first word too, or an answer would grow into its prompt's last word; w0, w1 and w2, which
        # are special tokens, are found inside of w10 too
        return "".join(f" w{source.randrange(30, 97)}" for _ in range(source.randint(low, high)))

    tables: dict[str, list[dict[str, str]]] = {
        "pairs": [{"prompt": words(2, 9), "chosen": words(1, 9), "rejected": words(1, 9)} for _ in range(32)],
        "same": [{"prompt": words(6, 6), "chosen": words(5, 5), "rejected": words(4, 4)} for _ in range(32)],
        "forget": [{"question": words(2, 9), "answer": words(1, 9)} for _ in range(32)],
        "retain": [{"question": words(2, 9), "answer": words(1, 9)} for _ in range(16)],
    }
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(world: Path, out: Path, device: torch.device, **changes: Any) -> Recipe:
    """A few steps in bf16 autocast, every one logged; ``train`` keys are merged, other sections replaced."""
    train = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": True,
        "use_cpu": device.type == "cpu",
    } | changes.pop("train", {})
    values = {
        "name": "tiny",
        "model": {"id": "model", "dtype": "float32"},
        "data": {"train": {"path": "pairs.jsonl"}},
        "objective": {"name": "dpo"},
        "reference": {"store_dir": str(out / "store")},
        "watch": {"report": False, **changes.pop("watch", {})},
        "output": str(out / "{name}"),
        **changes,
        "train": train,
    }
    return Recipe.from_dict(values, base=world)


def quietly(made: Recipe, **options: Any) -> RunResult:
    return run(made, echo=lambda line: None, **options)


def losses(directory: Path) -> list[float]:
    return [record["loss"] for record in RunDirectory(directory).metrics() if "loss" in record]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_moves_the_weights_and_leaves_a_verdict(
    device: torch.device, world: Path, tmp_path: Path, kind: str
) -> None:
    result = quietly(recipe(world, tmp_path, device, **KINDS[kind]), allow_code=True)
    assert result.steps == STEPS
    found = losses(tmp_path / "tiny")
    assert len(found) == STEPS
    assert all(map(math.isfinite, found))
    assert json.loads((tmp_path / "tiny/verdict.json").read_text())["findings"] == result.verdict["findings"]
    before, after = weights(world / "model"), weights(tmp_path / "tiny/model")
    kept = set(before) & set(after)  # a reward model has another head
    assert len(kept) >= len(before) - 1
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    # one learning rate and Adam: every matrix has moved by about as much
    assert min((after[name] - before[name]).abs().max() for name in kept if before[name].dim() == 2) > 1e-3
    record = (tmp_path / "tiny/recipe.lock.yaml").read_text()
    expected = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    assert f"device: {expected}" in record


@pytest.mark.usefixtures("repeatable")
def test_a_resumed_run_is_to_the_bit_the_uninterrupted_one(device: torch.device, world: Path, tmp_path: Path) -> None:
    """At one shape, with kernels that repeat themselves: the sums of a GPU's usual ones are in no fixed order."""
    settings = {"save_strategy": "steps", "save_steps": 2, "full_determinism": True}
    made = recipe(world, tmp_path, device, data={"train": {"path": "same.jsonl"}}, train=settings)
    quietly(made)
    whole, directory = tmp_path / "whole", tmp_path / "tiny"
    shutil.copytree(directory, whole)
    for left in ("checkpoint-4", "model"):
        shutil.rmtree(directory / left)
    (directory / "verdict.json").unlink()
    assert quietly(made, resume=True).steps == STEPS
    assert losses(directory) == losses(whole)
    before, again = weights(whole / "model"), weights(directory / "model")
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_a_second_run_reads_the_reference_from_the_store(device: torch.device, world: Path, tmp_path: Path) -> None:
    first = quietly(recipe(world, tmp_path, device, name="first"))
    second = quietly(recipe(world, tmp_path, device, name="second"))
    # both answers of 32 pairs, those of the first step twice: they are also compared with the policy at the start
    assert (first.reference_rows, first.stored_rows) == (2 * (32 + 8), 0)
    assert second.reference_rows == 0
    assert second.stored_rows == 2 * (32 + 8)
    (start,) = [r["reference"] for r in RunDirectory(tmp_path / "second").metrics() if "reference" in r]
    assert (start["rows_stored"], start["rows_computed"]) == (64, 0)
    # rows come from the packs of the first run: rounded as they would be here, but for the order of a GPU's sums
    allowed = 4 * start["noise_of_margin"] + 1e-5
    gaps = [abs(a - b) for a, b in zip(losses(tmp_path / "first"), losses(tmp_path / "second"), strict=True)]
    assert max(gaps) <= allowed
