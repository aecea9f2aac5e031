"""A small run of a recipe for tests: a tiny model and forty pairs, ten steps in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny import tiny_tokenizer
from zoo import tiny_model

from align.recipe import Recipe

WORDS = ["blue", "green", "red", "grey", "the sea", "a stone", "nothing", "every day", "at night", "in the north"]


def small_world(folder: Path) -> Path:
    """Put a tiny model, its tokenizer, and 40 training and 12 held-out pairs into a folder."""
    rows = [
        {
            "prompt": f"Question {i}: what is {WORDS[i % 7]}?",
            "chosen": f" It is {WORDS[(i + 1) % 10]}" + " and more" * (i % 4),
            "rejected": f" It was {WORDS[(3 * i + 2) % 10]}" + " or less" * (i % 3),
        }
        for i in range(52)
    ]
    for name, part in (("train", rows[:40]), ("held_out", rows[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = tiny_tokenizer([" ".join(row.values()) for row in rows], chat=False)
    tokenizer.save_pretrained(folder / "model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    return folder


def recipe(world: Path, out: Path, **changes: Any) -> Recipe:
    """Ten steps of DPO in float32; ``train`` keys are merged, other sections replaced."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"id": str(world / "model"), "dtype": "float32"},
        "data": {"train": {"path": str(world / "train.jsonl")}, "held_out": {"path": str(world / "held_out.jsonl")}},
        "objective": {"name": "dpo"},
        "reference": {"store_dir": str(out / "store")},
        "watch": {"report": False, **changes.pop("watch", {"every": 1})},  # a report takes a second or two
        "output": str(out / "{name}"),
    }
    train = {
        "max_steps": 10,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "use_cpu": True,
        "gradient_checkpointing": False,
    } | changes.pop("train", {})
    return Recipe.from_dict({**values, **changes, "train": train})
