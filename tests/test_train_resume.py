"""A run that is killed and goes on is the run that nobody killed: records, answers and weights, to the last bit."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import recipe, small_world
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from align.recipe import Recipe
from align.train import run

CLOCK = {"tokens_per_second", "seconds_left", "seconds", "evaluation_seconds"}
CLOCK |= {f"eval_{name}" for name in ("runtime", "samples_per_second", "steps_per_second")}
END = 12
SHORT = {"max_steps": END, "logging_steps": 3, "save_steps": 2, "eval_steps": 4, "warmup_steps": 0}
WATCH = {"every": 2, "probe_answers": 2, "generate_every": 5, "prompts": ["Question 1: what is green?"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "lora": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
    "moving": {"reference": {"sync_every": 3, "sync_mix": 0.5, "store": False}},
    "running": {"objective": {"name": "bco"}},
    "epochs": {"train": {**SHORT, "eval_strategy": "epoch", "eval_steps": None, "save_steps": 5}},
    "hypo": {"objective": {"name": "hypo"}, "sampling": {"samples": 2, "max_new_tokens": 4}},
}


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


class Dies(TrainerCallback):
    """Kills the process when it has taken ``steps`` steps: at the next one's begin, or at the end of training."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            os.kill(os.getpid(), signal.SIGKILL)

    on_train_end = on_step_begin


def killed(made: Recipe, steps: int, **options: Any) -> None:
    """Run a recipe in a process that is killed behind a step."""
    child = os.fork()
    if child == 0:
        try:
            DEFAULT_CALLBACKS.append(Dies(steps))
            run(made, echo=lambda line: None, **options)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def timeless(value: Any) -> Any:
    """A record without what the clock says."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in CLOCK}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def left(run: Path) -> dict[str, Any]:
    """What a run leaves, without the clock and its own place."""
    found: dict[str, Any] = {}
    for name in ("metrics.jsonl", "answers.jsonl", "samples.jsonl"):
        found[name] = [timeless(json.loads(line)) for line in (run / name).read_text().split("\n") if line]
    found["probe.json"] = json.loads((run / "probe.json").read_text())
    verdict = json.loads((run / "verdict.json").read_text())
    found["verdict.json"] = verdict["findings"]
    (file,) = (run / "model").glob("*.safetensors")
    found["weights"] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What the run of a setting leaves that nobody kills."""
    kept: dict[str, dict[str, Any]] = {}

    def leave(name: str) -> dict[str, Any]:
        if name not in kept:
            out = tmp_path_factory.mktemp(name)
            run(made(world, out, name), echo=lambda line: None)
            kept[name] = left(out / "tiny")
        return kept[name]

    return leave


def made(world: Path, out: Path, name: str) -> Recipe:
    settings = dict(SETTINGS[name])
    model = {
        "id": str(world / "model"),
        "dtype": "float32",
        **({"lora": settings.pop("lora")} if name == "lora" else {}),
    }
    return recipe(world, out, model=model, watch=WATCH, **{"train": SHORT, **settings})


@pytest.mark.parametrize("steps", [k if k in (1, 5, END) else slow(k) for k in range(END + 1)])
def test_killed_behind_any_step_it_leaves_what_the_whole_run_leaves(
    world: Path, whole: Any, tmp_path: Path, steps: int
) -> None:
    again = made(world, tmp_path, "dpo")
    killed(again, steps)
    lines: list[str] = []
    run(again, resume=True, echo=lines.append)
    kept = steps // 2 * 2
    beginning = "the run had no complete checkpoint yet: it starts from the beginning"
    assert (f"resuming from checkpoint-{kept}" if kept else beginning) in lines
    assert left(tmp_path / "tiny") == whole("dpo")


@pytest.mark.parametrize("name", [name if name == "lora" else slow(name) for name in SETTINGS if name != "dpo"])
def test_killed_twice_in_every_setting(world: Path, whole: Any, tmp_path: Path, name: str) -> None:
    again = made(world, tmp_path, name)
    killed(again, 7)
    killed(again, 11, resume=True)
    run(again, resume=True, echo=lambda line: None)
    assert left(tmp_path / "tiny") == whole(name)
