"""Nothing is lost beyond the last checkpoint, whatever goes wrong with the disk and whenever: see ``injection.py``."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from collections import Counter
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
SOME, KILLS, PARTS = 6, 200, 8  # the long ones in parts, for several workers
LORA = {"rank": 4, "alpha": 8}
DAMAGES = ("emptied", "cut", "flipped", "removed", "another's")
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


def injected(
    whole: Whole, server: Server, out: Path, fault: tuple[int, str] | None, seconds: float | None = None
) -> int:
    """Run into a fault, or into a kill after some seconds, go on, and come to the same end; the step gone on from."""
    run, file, log = out / "tiny", str(whole.file), out / "log"
    out.mkdir()
    values = [file, f"output={run}", f"reference.store_dir={out}/store"]
    code, said = server.run(*values, place=out, log=log, fault=fault, seconds=seconds)
    where = f"{fault or seconds} of {[event for event in whole.events if fault and event[0] == fault[0]]}:\n{said}"
    step, ended = saved_step(log) if log.exists() else 0, (run / "verdict.json").exists()
    if fault is None:
        assert code in (0, -9), where
    elif fault[1] in ("kill", "half"):
        assert code == -9, where
    elif fault[1] == "full":
        assert code in (0, 2, 3), where
        assert "Traceback" not in said, where
    else:  # a fault of the rehearsal before the first step is a sentence
        assert code in (0, 1) or (code == 2 and "(an injected fault), so nothing" in said), where
    if code:
        begun = (run / "recipe.lock.yaml").exists()
        more = ["--resume"] if begun else []
        code, said = server.run(*values, *more, place=out, log=out / "again")
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
    return step


def faults(whole: Whole) -> list[tuple[int, str]]:
    """Every event with every way to fail that differs there from the others."""
    found = []
    for number, name, _ in whole.events:
        found += [(number, how) for how in HOW if how != "half" or name == "write"]
    return found


def test_some_faults_by_lot_lose_nothing(whole: Whole, server: Server, tmp_path: Path) -> None:
    assert len(whole.events) > 150
    assert {"open", "write", "replace", "fsync", "unlink", "save", "save_file", "wait_for_everyone"} <= {
        name for _, name, _ in whole.events
    }
    for number, fault in enumerate(random.Random(7).sample(faults(whole), SOME)):
        injected(whole, server, tmp_path / str(number), fault)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_fault_before_or_in_any_event_of_a_run_loses_anything(
    part: int, whole: Whole, server: Server, tmp_path: Path
) -> None:
    for number, fault in enumerate(faults(whole)[part::PARTS]):
        injected(whole, server, tmp_path / str(number), fault)
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_two_hundred_kills_at_random_moments_lose_nothing(
    part: int, whole: Whole, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints how many went on from which step, by the quarter of the run in which the kill came."""
    began = time.monotonic()
    injected(whole, server, tmp_path / "timed", None)
    duration, source = time.monotonic() - began, random.Random(part)
    table: Counter[tuple[int, int]] = Counter()
    for number in range(KILLS // PARTS):
        moment = source.random()
        step = injected(whole, server, tmp_path / str(number), None, moment * duration)
        table[int(moment * 4), step] += 1
        shutil.rmtree(tmp_path / str(number))
    steps = sorted({step for _, step in table})
    with capsys.disabled():
        print(f"\n{table.total()} kills in runs of {duration:.1f} s; all came to the same weights and losses")
        print("quarter   " + "".join(f"from step {step}   " for step in steps))
        for quarter in range(4):
            print(f"{quarter + 1:>7}   " + "".join(f"{table[quarter, step]:>11}   " for step in steps))
    assert table.total() == KILLS // PARTS


@dataclass(frozen=True)
class Killed:
    """Two runs of other seeds that were killed behind their second checkpoint, and the weights that the first one has
    when nothing kills it.
    """

    whole: Whole
    mine: Path
    other: Path


@pytest.fixture(scope="module")
def killed(whole: Whole, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    file = str(whole.file)
    more = ["train.save_total_limit=2", f"reference.store_dir={folder}/store"]
    code, said = server.run(file, f"output={folder}/a", *more, place=folder, log=folder / "whole")
    assert code == 0, said
    shutil.rmtree(folder / "a")
    at = next(number for number, _, path in events(folder / "whole") if path.startswith("a/model"))
    for name, seed in (("a", 0), ("b", 1)):
        values = [file, f"output={folder}/{name}", f"seed={seed}", *more]
        code, said = server.run(*values, place=folder, log=folder / f"log-{name}", fault=(at, "kill"))
        assert code == -9, said
        assert {"checkpoint-2", "checkpoint-4"} <= {path.name for path in (folder / name).iterdir()}
    return Killed(whole, folder / "a", folder / "b")


def damage(file: Path, how: str, other: Path) -> None:
    """Damage a file in one of five ways; ``other`` is the same one of another run."""
    content = file.read_bytes()
    middle = len(content) // 2
    if how == "removed":
        file.unlink()
    elif how == "another's":
        shutil.copyfile(other, file)
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 4] if content else []) + content[middle + 1 :]
        file.write_bytes({"emptied": b"", "cut": content[:middle], "flipped": flipped}[how])


def damages(killed: Killed) -> list[tuple[str, str]]:
    """Every file of the run with every way to damage it; that of another run is none where both are the same."""
    files = sorted(path.relative_to(killed.mine) for path in killed.mine.rglob("*") if path.is_file())
    there = [file for file in files if (killed.other / file).exists() and file.name != ".running"]
    same = {file for file in there if (killed.other / file).read_bytes() == (killed.mine / file).read_bytes()}
    return [(file.as_posix(), how) for file in there for how in DAMAGES if how != "another's" or file not in same]


def resumed(killed: Killed, server: Server, out: Path, name: str, how: str) -> None:
    """Go on with a damaged copy: the same weights, or a sentence."""
    run = out / "a"
    shutil.copytree(killed.mine, run)
    damage(run / name, how, killed.other / name)
    more = ["train.save_total_limit=2", f"reference.store_dir={out}/store", "--resume"]
    code, said = server.run(str(killed.whole.file), f"output={run}", *more, place=out, log=out / "log")
    assert "Traceback" not in said, f"{name} {how}:\n{said}"
    assert code in (0, 2), f"{name} {how}:\n{said}"
    if code:
        assert re.search(r"damaged|another recipe|holds no run|has changed|data changed", said), (
            f"{name} {how}:\n{said}"
        )
        return
    mine, whole = weights(run), killed.whole.weights
    assert all(torch.equal(mine[key], whole[key]) for key in whole), f"{name} {how}:\n{said}"
    if name.startswith("checkpoint-4/"):
        assert "checkpoint-4 is left out: " in said
        assert "resuming from checkpoint-2\n" in said
    elif name.startswith("checkpoint-2/") or not name.endswith(".yaml"):
        assert "resuming from checkpoint-4\n" in said, f"{name} {how}:\n{said}"


def test_some_damaged_files_by_lot_give_the_same_weights_or_a_sentence(
    killed: Killed, server: Server, tmp_path: Path
) -> None:
    cases = damages(killed)
    assert len(cases) > 100
    for number, (name, how) in enumerate(random.Random(3).sample(cases, SOME)):
        resumed(killed, server, tmp_path / str(number), name, how)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_damage_to_any_file_of_a_run_gives_other_weights(
    part: int, killed: Killed, server: Server, tmp_path: Path
) -> None:
    for number, (name, how) in enumerate(damages(killed)[part::PARTS]):
        resumed(killed, server, tmp_path / str(number), name, how)
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.parametrize(
    "share", [0.7, 1.7, *(pytest.param(n / 10, marks=pytest.mark.slow) for n in (3, 4, 5, 6, 8, 9, 11, 13, 14, 15, 19))]
)
def test_a_disk_that_is_full_ends_the_run_with_a_sentence_and_the_last_checkpoint_whole(
    share: float, whole: Whole, server: Server, tmp_path: Path
) -> None:
    """A real one: below 1 it has no room for a checkpoint, else for one of two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    checkpoint = whole.file.parent / "out" / "tiny" / "checkpoint-4"
    size = int(share * sum(-(-file.stat().st_size // 4096) * 4096 for file in checkpoint.iterdir()))
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=False)
    except FileNotFoundError:
        made = None
    if made is None or made.returncode:
        pytest.skip("a small file system of one's own needs root: mount -t tmpfs")
    try:
        run = disk / "tiny"
        values = [str(whole.file), f"output={run}", f"reference.store_dir={tmp_path}/store", "train.save_total_limit=9"]
        code, said = server.run(*values, place=tmp_path, log=tmp_path / "log")
        assert code == 3, said
        assert "Traceback" not in said
        kept = RunDirectory(run).checkpoints()
        again = f"Go on from {kept[-1].name}: " if kept else "The run had no checkpoint yet and begins anew with: "
        assert re.search(rf"cannot be written: the disk is full\. Make room\. {again}.* --resume\n$", said), said
        metrics = run / "metrics.jsonl"
        assert metrics.exists() or "margin   accuracy" not in said  # it ended before its first step
        assert not metrics.exists() or metrics.read_bytes().endswith(b"\n")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        code, said = server.run(*values, "--resume", place=tmp_path, log=tmp_path / "again")
        assert code == 0, said
        mine = weights(run)
        assert all(torch.equal(mine[name], whole.weights[name]) for name in mine)
        assert losses(run) == whole.losses
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
