"""Gradient entanglement in a whole run: what it records, and a beta_minus that follows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.recipe import Recipe
from align.runs.directory import RunDirectory
from align.train import run

WORDS = ("blue", "green", "red", "the sea", "a stone", "nothing", "every day")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and 24 pairs whose answers begin differently and go on alike, 8 of them held out."""
    folder = tmp_path_factory.mktemp("entangled")
    rows = [
        {
            "prompt": f"Question {i}: what is {WORDS[i % 7]}?",
            "chosen": f" {WORDS[(i + 1) % 7]} and nothing more was known of it",
            "rejected": f" {WORDS[(i + 3) % 7]}, {WORDS[(i + 5) % 7]} and nothing more was known of it",
        }
        for i in range(24)
    ]
    for name, part in (("train", rows[:16]), ("held_out", rows[16:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = tiny_tokenizer([" ".join(row.values()) for row in rows], chat=False)
    tokenizer.save_pretrained(folder / "model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    return folder


def trained(world: Path, name: str, objective: dict[str, Any], **watch: Any) -> list[dict[str, Any]]:
    """The records of four steps, every one read."""
    values: dict[str, Any] = {
        "name": name,
        "model": {"id": str(world / "model"), "dtype": "float32"},
        "data": {"train": {"path": str(world / "train.jsonl")}, "held_out": {"path": str(world / "held_out.jsonl")}},
        "objective": objective,
        "reference": {"store": False},
        "watch": {"every": 1, "probe_answers": 0, "entanglement_pairs": 3, **watch},
        "train": {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "eval_strategy": "no",
            "use_cpu": True,
        },
        "output": str(world / "runs" / name),
    }
    run(Recipe.from_dict(values), echo=lambda _: None)
    return RunDirectory(str(world / "runs" / name), writer=False).metrics()


def test_a_run_records_readings_and_a_finding(world: Path) -> None:
    records = trained(world, "dpo", {"name": "dpo"})
    readings = {record["step"]: record["entanglement"] for record in records if "entanglement" in record}
    assert sorted(readings) == [0, 1, 2, 3, 4]
    for step, reading in readings.items():
        assert (reading["of"], reading["block"], reading["n"]) == ("last block", "model.layers.1", 3)
        assert reading["head"]["n"] == 6
        assert sum(reading["cases"].values()) == 3
        assert reading["seconds"] > 0
        assert ("adam" in reading) is (step > 0)
    assert readings[0]["cosine"] != readings[4]["cosine"]
    finding = json.loads((world / "runs/dpo/verdict.json").read_text())["findings"]["entanglement"]
    assert (finding["n"], finding["cases"]) == (3, readings[4]["cases"])
    assert finding["word"] == "not clear"  # three pairs are no majority that is sure


def test_without_pairs_nothing_is_read(world: Path) -> None:
    records = trained(world, "none", {"name": "dpo"}, entanglement_pairs=0)
    assert not [record for record in records if "entanglement" in record]


def test_beta_minus_follows_the_gradients_and_the_probe_set_is_read_with_it(world: Path) -> None:
    records = trained(world, "auto", {"name": "flex_dpo", "beta_plus": 0.2, "beta_minus": "auto"})
    logged = [record["flex/beta_minus"] for record in records if "flex/beta_minus" in record]
    assert logged[0] == pytest.approx(0.16, rel=1e-6, abs=0)
    assert len(set(logged)) == 4
    assert all(0.02 < beta < 0.2 for beta in logged)
    probes = [record["probe"] for record in records if "probe" in record]
    # the margin at a step has the mean over the steps so far, which the next step trains with
    for probe, beta in zip(probes, logged, strict=False):
        expected = 0.2 * probe["chosen"]["value"] - beta * probe["rejected"]["value"]
        assert probe["reward_margin"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    # and the pulls that readings go by are those of the mean, too
    pulls = [record["entanglement"]["pull_ratio"] for record in records if "entanglement" in record]
    assert pulls[:4] == pytest.approx([beta / 0.2 for beta in logged], rel=1e-4, abs=0)
