"""A run that is asked to end: it saves where it is, says how to go on, and comes to the same end when it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_run import recipe, small_world
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

import align.cli.main
import align.train
import align.training.run as training

At = Callable[..., None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


def written(world: Path, out: Path, **changes: Any) -> str:
    """A file of six steps with a save after the fourth."""
    made = recipe(world, out, watch={"probe_pairs": 0}, train={"max_steps": 6, **changes})
    out.mkdir(exist_ok=True)
    (out / "r.yaml").write_text(yaml.safe_dump(made.dump()))
    return str(out / "r.yaml")


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[At]:
    """Sends signals to this process when an event of training comes at a step, once."""
    added = []
    monkeypatch.setattr(sys, "argv", ["train.py", "r.yaml"])

    def send(event: str, step: int, *numbers: int) -> None:
        left = list(numbers)

        class Sends(TrainerCallback):
            pass

        def sends(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            while state.global_step == step and left:
                os.kill(os.getpid(), left.pop(0))

        setattr(Sends, event, sends)
        DEFAULT_CALLBACKS.append(Sends)
        added.append(Sends)

    yield send
    for callback in added:
        DEFAULT_CALLBACKS.remove(callback)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the run that nothing ends."""
    out = tmp_path_factory.mktemp("whole")
    assert align.train.main([written(world, out)]) == 0
    return weights(out / "tiny")


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "Ctrl-C")]
)
def test_a_signal_saves_the_step_it_came_in_and_says_how_to_go_on(
    number: int, name: str, world: Path, whole: Any, at: At, tmp_path: Path, capfd: Any
) -> None:
    file = written(world, tmp_path)
    at("on_step_begin", 2, number)
    before = signal.getsignal(number)
    assert align.train.main([file]) == 4
    assert signal.getsignal(number) == before
    said = capfd.readouterr().err
    more = " Ctrl-C again ends it at once." if name == "Ctrl-C" else ""
    assert f"{name}: the run ends when this step has ended and is saved.{more}\n" in said
    again = "Go on from checkpoint-3: python -m align.train r.yaml --resume"
    assert said.endswith(f"Stopped by {name} at step 3, which is saved. {again}\n")
    assert json.loads((tmp_path / "tiny/facts.json").read_text())["stopped"].startswith(f"Stopped by {name} at step 3")
    assert align.train.main([file, "--resume"]) == 0
    assert "resuming from checkpoint-3" in capfd.readouterr().out
    mine = weights(tmp_path / "tiny")
    assert all(torch.equal(mine[key], whole[key]) for key in whole)


def test_a_second_ctrl_c_ends_the_run_at_once(world: Path, at: At, tmp_path: Path, capfd: Any) -> None:
    file = written(world, tmp_path)
    at("on_step_begin", 5, signal.SIGINT, signal.SIGINT)
    assert align.train.main([file]) == 130
    said = capfd.readouterr().err
    assert "Ctrl-C: the run ends when this step has ended" in said
    assert said.endswith(" r.yaml --resume\n")
    assert sorted(p.name for p in (tmp_path / "tiny").glob("checkpoint-*")) == ["checkpoint-4"]


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 4, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
@pytest.mark.parametrize("place", ["load_data", "load_model"])
def test_before_there_is_anything_to_go_on_with_nobody_is_told_to_resume(
    place: str, number: int, code: int, name: str, world: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    plain = getattr(training, place)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return plain(*args, **kwargs)

    monkeypatch.setattr(training, place, interrupted)
    file = written(world, tmp_path)
    words = ["train", file]
    monkeypatch.setattr(sys, "argv", ["align", *words])
    assert align.cli.main.main(words) == code
    again = f"Nothing was recorded yet. Start it again: align train {file}\n"
    assert capsys.readouterr().err == f"Interrupted by {name}. {again}"


def test_a_signal_in_the_measurements_before_the_first_step_ends_the_run_at_once(
    world: Path, at: At, tmp_path: Path, capsys: Any
) -> None:
    at("on_train_begin", 0, signal.SIGTERM)
    file = written(world, tmp_path)
    assert align.train.main([file]) == 4
    said = capsys.readouterr().err
    assert said.startswith("Interrupted by SIGTERM. The run had no checkpoint yet and begins anew with: ")
    assert said.endswith(" r.yaml --resume\n")


def test_a_run_that_is_at_its_end_comes_to_it(
    world: Path, whole: Any, tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    file = written(world, tmp_path)
    plain = training.finish

    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args)

    monkeypatch.setattr(training, "finish", interrupted)
    assert align.train.main([file]) == 0
    assert "SIGTERM: the run ends when its result is written.\n" in capfd.readouterr().err
    mine = weights(tmp_path / "tiny")
    assert all(torch.equal(mine[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_a_step_that_takes_longer_than_the_grace_is_given_up_with_a_word(world: Path, tmp_path: Path) -> None:
    """In a process of its own, since it is left from beside the main thread."""
    file = written(world, tmp_path)
    code = f"""
import os, signal, threading, time
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS
from align.runs import signals
from align.train import end, main
signals.GRACE = 1.0
class Sits(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(30)  # Python sleeps on after a handler that returns
DEFAULT_CALLBACKS.append(Sits)
end(main([{file!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    word = "SIGTERM: the work at hand did not end within 1 seconds and is lost. Go on from checkpoint-4: "
    assert word in done.stderr.splitlines()[-1]


def test_where_nobody_reads_the_last_word_the_process_ends_all_the_same() -> None:
    """The launcher is gone and nothing reads the pipe: failing to speak had left the main thread waiting for ever."""
    code = """
import os, signal, time
from align.runs import signals
signals.GRACE = 0.1
with signals.SIGNALS.heard():
    signals.SIGNALS.until = signals.STEP
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
"""
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=write, env={**os.environ, "RANK": "1"})
    os.close(write)
    os.close(read)
    try:
        assert process.wait(timeout=15) == 4
    finally:
        process.kill()
        process.wait()
