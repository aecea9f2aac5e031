"""A run that is killed and goes on is the run that nobody killed: records, answers and weights, to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import recipe, small_world
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from align.errors import UserError
from align.recipe import Recipe, load_recipe
from align.runs import checkpoints
from align.runs.directory import LOCK, RunDirectory
from align.runs.processes import World
from align.runs.running import Running
from align.train import run
from align.training.resume import newest

CLOCK = {"tokens_per_second", "seconds_left", "seconds", "evaluation_seconds"}
CLOCK |= {f"eval_{name}" for name in ("runtime", "samples_per_second", "steps_per_second")}
END = 12
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that it has threads, and forks
SHORT = {"max_steps": END, "logging_steps": 3, "save_steps": 2, "eval_steps": 4, "warmup_steps": 0}
WATCH = {"every": 2, "probe_answers": 2, "generate_every": 5, "prompts": ["Question 1: what is green?"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "lora": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
    "moving": {"reference": {"sync_every": 3, "sync_mix": 0.5, "store": False}},
    "running": {"objective": {"name": "bco_pair"}},
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


def killed(made: Recipe, steps: int, how: Callable[[], Dies] | None = None, **options: Any) -> None:
    """Run a recipe in a process that is killed behind a step."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # a pool of threads does not outlive a fork
            DEFAULT_CALLBACKS.append(how() if how else Dies(steps))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "dpo"])
def test_killed_twice_in_every_setting(world: Path, whole: Any, tmp_path: Path, name: str) -> None:
    again = made(world, tmp_path, name)
    killed(again, 7)
    killed(again, 11, resume=True)
    run(again, resume=True, echo=lambda line: None)
    assert left(tmp_path / "tiny") == whole(name)


@pytest.fixture(scope="module")
def cut(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed behind its ninth step, with checkpoints of steps 6 and 8."""
    out = tmp_path_factory.mktemp("cut")
    killed(made(world, out, "dpo"), 9)
    return out / "tiny"


def test_a_moved_run_goes_on_from_its_lock_file_where_it_lies_now(
    world: Path, whole: Any, cut: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(cut, moved)
    lines: list[str] = []
    result = run(load_recipe(moved / LOCK), resume=True, echo=lines.append)
    assert "resuming from checkpoint-8" in lines
    assert result.directory == str(moved)
    assert left(moved) == whole("dpo")


def test_a_second_run_in_a_directory_is_refused_while_the_first_lives(world: Path, cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut, tmp_path / "tiny")
    held = Running(tmp_path / "tiny", print)
    for resume in (False, True):
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on .*, since .* UTC"):
            run(made(world, tmp_path, "dpo"), resume=resume, echo=lambda line: None)
    held.release()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "gone": lambda file: file.unlink(),
    "flipped": lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
    "another's": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_checkpoint_with_any_file_damaged_is_named_and_the_one_before_it_taken(
    cut: Path, tmp_path: Path, how: str
) -> None:
    alone, directory = World(0, 1, torch.device("cpu")), RunDirectory(tmp_path / "tiny")
    files = sorted(p.relative_to(cut) for p in (cut / "checkpoint-8").rglob("*") if p.is_file())
    assert {"complete.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "progress.json"} < {p.name for p in files}
    for file in files:
        shutil.rmtree(tmp_path / "tiny", ignore_errors=True)
        shutil.copytree(cut, tmp_path / "tiny", copy_function=os.link)
        content = (cut / file).read_bytes()
        (tmp_path / "tiny" / file).unlink()  # the other name of the same file
        (tmp_path / "tiny" / file).write_bytes(content)
        DAMAGE[how](tmp_path / "tiny" / file)
        lines: list[str] = []
        found = newest(directory, alone, lines.append)
        assert found is not None
        assert found.step == 6
        assert len(lines) == 1
        assert lines[0].startswith("checkpoint-8 is left out: ")
        assert file.name in lines[0]


def test_checkpoints_of_others_are_named_and_left_alone(world: Path, whole: Any, cut: Path, tmp_path: Path) -> None:
    """Of another run with the same shapes, of nobody, and one that was being written: only the last one goes."""
    shutil.copytree(cut, tmp_path / "tiny")
    other = made(world, tmp_path / "other", "dpo")
    killed(other, 11)
    shutil.copytree(tmp_path / "other/tiny/checkpoint-10", tmp_path / "tiny/checkpoint-11")
    shutil.copytree(cut / "checkpoint-8", tmp_path / "tiny/checkpoint-13")
    (tmp_path / "tiny/checkpoint-13/complete.json").unlink()  # as transformers writes it
    checkpoints.begin(tmp_path / "tiny/checkpoint-10", RunDirectory(cut).id)
    (tmp_path / "tiny" / f".verdict.json.{'0' * 32}").write_text("half")
    lines: list[str] = []
    run(made(world, tmp_path, "dpo"), resume=True, echo=lines.append)
    start = lines.index("checkpoint-10 was being written when the run ended: removed")
    assert lines[start : start + 4] == [
        "checkpoint-10 was being written when the run ended: removed",
        "1 temporary file of an interrupted run removed",
        "checkpoint-13 is left out: it has no complete.json, so it was never finished or is none of this program's",
        "checkpoint-11 is left out: complete.json is that of step 10",
    ]
    assert "resuming from checkpoint-8" in lines
    assert left(tmp_path / "tiny") == whole("dpo")
    there = {p.name for p in (tmp_path / "tiny").glob("checkpoint-*")}
    assert there == {"checkpoint-10", "checkpoint-11", "checkpoint-12", "checkpoint-13"}


class PowerCut(Dies):
    """Ends the machine: of what was never synced to the disk, contents and names are lost, before the process dies."""

    def __init__(self, steps: int, run: Path) -> None:
        super().__init__(steps)
        self.run, self.names, self.sizes = run, dict[int, set[str]](), dict[int, int]()
        self._sync = os.fsync
        os.fsync = self.fsync

    def fsync(self, file: int) -> None:
        self._sync(file)
        about = os.fstat(file)
        if stat.S_ISDIR(about.st_mode):
            self.names[about.st_ino] = set(os.listdir(file))
        else:
            self.sizes[about.st_ino] = about.st_size

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            self.lose(self.run)
        super().on_step_begin(args, state, control, **kwargs)

    on_train_end = on_step_begin

    def lose(self, folder: Path) -> None:
        kept = self.names.get(folder.stat().st_ino, set())
        for path in folder.iterdir():
            if path.is_dir():
                self.lose(path) if path.name in kept else shutil.rmtree(path)
            elif path.name not in kept:
                path.unlink()
            elif path.stat().st_size > (synced := self.sizes.get(path.stat().st_ino, 0)):
                os.truncate(path, synced)


def test_what_was_never_synced_is_lost_with_the_power_and_nothing_that_counts_was(
    world: Path, whole: Any, tmp_path: Path
) -> None:
    again = made(world, tmp_path, "dpo")
    killed(again, 9, lambda: PowerCut(9, tmp_path / "tiny"))
    size = (tmp_path / "tiny" / "metrics.jsonl").stat().st_size
    lines: list[str] = []
    run(again, resume=True, echo=lines.append)
    assert "resuming from checkpoint-8" in lines
    assert not any("is left out" in line or line.startswith("warning") for line in lines)
    assert left(tmp_path / "tiny") == whole("dpo")
    assert size < (tmp_path / "tiny" / "metrics.jsonl").stat().st_size


def test_the_best_checkpoint_is_the_one_that_was_written_or_not_taken(world: Path, tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    train = {**SHORT, **best, "max_steps": 6, "eval_steps": 2, "save_steps": 2, "save_total_limit": 1}

    def cut(name: str) -> Recipe:
        again = recipe(world, tmp_path, name=name, watch={"probe_pairs": 0}, train=train)
        killed(again, 6)
        return again

    lines: list[str] = []
    run(cut("good"), resume=True, echo=lines.append)
    assert not any(line.startswith("warning") for line in lines)
    (best_one,) = (tmp_path / "good").glob("checkpoint-*")  # with a limit of 1 only the best is left at the end
    assert best_one.name == "checkpoint-2"  # the loss falls, and here the highest counts as the best
    saved = "model/model.safetensors"
    assert (tmp_path / "good" / saved).read_bytes() == (best_one / "model.safetensors").read_bytes()

    damaged = cut("damaged")
    weights = tmp_path / "damaged" / best_one.name / "model.safetensors"
    DAMAGE["flipped"](weights)
    last = (tmp_path / "damaged/checkpoint-6/model.safetensors").read_bytes()
    run(damaged, resume=True, echo=lines.append)
    said = f"warning: {best_one.name}, the best one, cannot be taken (model.safetensors is not what was written)"
    assert [line for line in lines if line.startswith("warning")] == [f"{said}: the last step is saved instead"]
    assert (tmp_path / "damaged" / saved).read_bytes() == last
