"""A world for runs in rounds: a tiny model, prompts, judges by rule. As a program it runs a recipe and may be killed.

    python tests/round_runs.py RECIPE [--resume]

With ALIGN_TEST_KILL_AT=STAGE:NUMBER the process kills itself when that part, or training step, begins;
with ALIGN_TEST_KILL_AT=STAGE:NUMBER:SIGTERM, or another name, it sends itself that signal.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import yaml
from saved_model import save_model

PROMPTS = 23
RULES = '''"""Judges by rule; every call leaves a line."""

import json
import os


def note(kind, count):
    with open(os.path.join(os.path.dirname(__file__), "judged.log"), "a") as file:
        file.write(json.dumps([kind, count]) + "\\n")


def worth(text):
    words = [int(word[1:]) for word in text.split() if word[1:].isdigit()]
    return sum(word % 7 for word in words) / max(len(words), 1)


def score(prompts, responses):
    note("score", len(responses))
    return [worth(response) for response in responses]


def compare(prompts, a, b):
    note("compare", len(a))
    return [0.9 if worth(x) > worth(y) else 0.5 if worth(x) == worth(y) else 0.3 for x, y in zip(a, b)]


def first_shown(prompts, a, b):
    return [1.0] * len(a)


def same(prompts, responses):
    return [1.0] * len(responses)
'''


def make_world(folder: Path) -> Path:
    """Model, tokenizer, prompts and rules in ``folder``."""
    save_model(folder / "model", initializer_range=0.2)
    source = random.Random(3)
    texts = [" ".join(f"w{source.randrange(3, 97)}" for _ in range(source.randint(2, 7))) for _ in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    (folder / "round_rules.py").write_text(RULES)
    return folder


def values(world: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Two rounds of INPO on eight prompts each; ``train`` keys are merged, other sections replaced."""
    train = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "use_cpu": True,
        "gradient_checkpointing": False,
    } | changes.pop("train", {})
    return {
        "name": "tiny",
        "seed": 5,
        "model": {"id": str(world / "model"), "dtype": "float32"},
        "data": {"train": {"path": str(world / "prompts.jsonl")}, "max_length": 64},
        "objective": {"name": "inpo", "eta": 0.1, "tau_ratio": 0.25},
        "sampling": {"samples": 4, "max_new_tokens": 6},
        "judge": {"function": "round_rules:score"},
        "rounds": {"count": 2, "prompts": 8},
        "train": train,
        "output": str(out / "{name}"),
        **changes,
        "watch": {"report": False, **changes.get("watch", {"probe_pairs": 0})},  # a second or two each
    }


def write_recipe(world: Path, out: Path, **changes: Any) -> Path:
    """The recipe as a file in ``world``, beside the rules."""
    file = world / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(values(world, out, **changes)))
    return file


def _die_at(stage: str, number: int, sent: signal.Signals) -> None:
    """Send this process a signal when a stage begins for the ``number``-th time."""
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    import align.rounds.trainer as module

    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), sent)

    if stage == "train":

        class Dies(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                count()

        DEFAULT_CALLBACKS.append(Dies)
        return
    name = {"sample": "draw_part", "judge": "judge_part", "pairs": "make_pairs", "finish": "_copy"}[stage]
    if stage == "finish":
        from align.rounds import finish as module
    elif stage == "sample":
        from align.rounds import sampling as module
    original = getattr(module, name)

    def dies(*args: Any) -> Any:
        count()
        return original(*args)

    setattr(module, name, dies)


if __name__ == "__main__":
    import align.rounds.stages as stages
    from align.train import end, main

    stages.PART = 3
    if "ALIGN_TEST_KILL_AT" in os.environ:
        where, at, *sent = os.environ["ALIGN_TEST_KILL_AT"].split(":")
        _die_at(where, int(at), signal.Signals[sent[0] if sent else "SIGKILL"])
    end(main([*sys.argv[1:], "--allow-code"]))
