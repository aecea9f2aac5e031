"""Nothing is lost beyond the last checkpoint, whatever goes wrong with the disk and whenever: see ``injection.py``."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from injection import Server
from safetensors.torch import load_file
from small_run import recipe, small_world

from align.runs.directory import RunDirectory

HOW = ("kill", "half", "raise", "full")
DOZEN = 12
LORA = {"r": 4, "alpha": 8}
Losses = list[tuple[int, float, float]]


@dataclass(frozen=True)
class Whole:
    """A run that nothing happens to: what it leaves, and the events that it meets."""

    file: Path
    weights: dict[str, torch.Tensor]
    losses: Losses
    events: list[tuple[int, str, str]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["full", pytest.param("lora", marks=pytest.mark.slow)])
def whole(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Four steps with a checkpoint after the second and the fourth, of which the last one stays."""
    folder = tmp_path_factory.mktemp(request.param)
    world = folder / "world"
    world.mkdir()
    small_world(world)
    lora = {"lora": LORA} if request.param == "lora" else {}
    made = recipe(
        world,
        folder / "out",
        model={"id": str(world / "model"), "dtype": "float32", **lora},
        data={"train": {"path": str(world / "train.jsonl")}},
        watch={"probe_pairs": 2, "every": 2, "probe_answers": 1},
        train={
            "max_steps": 4,
            "save_steps": 2,
            "save_total_limit": 1,
            "eval_strategy": "no",
            "eval_steps": None,
        },
    )
    file = folder / "r.yaml"
    file.write_text(yaml.safe_dump(made.dump()))
    for name in ("warm", "log"):  # the first one imports what the others find
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir()
        code, said = server.run(str(file), place=folder / "out", log=folder / name)
        assert code == 0, said
    run = folder / "out" / "tiny"
    return Whole(file, weights(run), losses(run), events(folder / "log"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file)


def losses(run: Path) -> Losses:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in RunDirectory(run).metrics() if "loss" in r]


def events(log: Path) -> list[tuple[int, str, str]]:
    """Number, name and file of what happened."""
    lines = [line.split("\t") for line in log.read_text().split("\n") if line]
    return [(int(number), name, path) for number, name, path in lines]


def saved_step(log: Path) -> int:
    """The last step whose marker was in its place; 0 for none."""
    markers = [path for _, name, path in events(log) if name == "replace" and ".complete.json." in path]
    return max((int(re.search(r"checkpoint-(\d+)", path)[1]) for path in markers), default=0)  # type: ignore[index]


def injected(whole: Whole, server: Server, out: Path, fault: tuple[int, str]) -> None:
    """Run into a fault, go on, and come to the same end."""
    run, file, log = out / "tiny", str(whole.file), out / "log"
    out.mkdir()
    place = f"output={run}"
    code, said = server.run(file, place, f"reference.store_dir={out}/store", place=out, log=log, fault=fault)
    where = f"{fault} of {[event for event in whole.events if event[0] == fault[0]]}:\n{said}"
    if fault[1] in ("kill", "half"):
        assert code == -9, where
    elif fault[1] == "full":
        assert code in (0, 3), where
        assert "Traceback" not in said, where
    else:
        assert code in (0, 1), where
    if code:
        begun = (run / "recipe.lock.yaml").exists()
        ended = (run / "verdict.json").exists()
        more = ["--resume"] if begun else []
        step = saved_step(log)
        code, said = server.run(file, place, f"reference.store_dir={out}/store", *more, place=out, log=out / "again")
        assert code == (2 if ended else 0), f"{where}\nand then:\n{said}"
        if ended:
            assert said.endswith("holds a finished run: there is nothing to resume.\n")
        elif begun:
            went_on = f"resuming from checkpoint-{step}\n" if step else "no complete checkpoint yet: it starts from the"
            assert went_on in said, f"{where}\nand then:\n{said}"
        assert "Traceback" not in said
    mine = weights(run)
    assert mine.keys() == whole.weights.keys()
    assert all(torch.equal(mine[name], whole.weights[name]) for name in mine), where
    assert losses(run) == whole.losses, where
    left = [path.name for path in run.rglob("*") if re.fullmatch(r"\..+\.[0-9a-f]{32}|\.rehearsal-.+", path.name)]
    assert not left or ended, f"{where}\n{left}"


def faults(whole: Whole) -> list[tuple[int, str]]:
    """Every event with every way to fail that differs there from the others."""
    found = []
    for number, name, _ in whole.events:
        found += [(number, how) for how in HOW if how != "half" or name == "write"]
    return found


def test_a_dozen_faults_by_lot_lose_nothing(whole: Whole, server: Server, tmp_path: Path) -> None:
    assert len(whole.events) > 150
    assert {"open", "write", "replace", "fsync", "unlink", "save", "save_file", "wait_for_everyone"} <= {
        name for _, name, _ in whole.events
    }
    for number, fault in enumerate(random.Random(7).sample(faults(whole), DOZEN)):
        injected(whole, server, tmp_path / str(number), fault)


@pytest.mark.slow
def test_no_fault_before_or_in_any_event_of_a_run_loses_anything(whole: Whole, server: Server, tmp_path: Path) -> None:
    for number, fault in enumerate(faults(whole)):
        injected(whole, server, tmp_path / str(number), fault)
        shutil.rmtree(tmp_path / str(number))
