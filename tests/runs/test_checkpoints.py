"""Checkpoints count when they are whole, and only then."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from align.runs import checkpoints
from align.runs.checkpoints import MARKER, Checkpoint, Damaged, changed, complete_ones, read, remove, rotate, sweep

RUN = "a" * 32
FILES = {"model.safetensors": b"weights" * 100, "optimizer.pt": b"moments" * 300, "deep/shard-0.pt": b"shard"}


def made(run: Path, step: int, run_id: str = RUN, files: dict[str, bytes] = FILES) -> Path:
    """A complete checkpoint."""
    folder = run / f"checkpoint-{step}"
    checkpoints.begin(folder, run_id)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    found = checkpoints.digests(folder, sorted(checkpoints.sizes(folder)), sync=True)
    checkpoints.finish(Checkpoint(folder, run_id, step, 2, "ddp", found))
    return folder


def why(folder: Path) -> str:
    """What is wrong with a checkpoint; empty where nothing is."""
    try:
        found = read(folder, RUN)
    except Damaged as error:
        return str(error)
    return ", ".join(changed(found, sorted(found.files)))


def test_a_marker_names_run_step_processes_and_every_file_with_its_digest(tmp_path: Path) -> None:
    folder = made(tmp_path, 8)
    marker = json.loads((folder / MARKER).read_text())
    assert {key: marker[key] for key in ("run", "step", "processes", "backend")} == {
        "run": RUN,
        "step": 8,
        "processes": 2,
        "backend": "ddp",
    }
    assert marker["files"] == {
        name: {"bytes": len(content), "sha256": sha256(content).hexdigest()} for name, content in FILES.items()
    }
    assert why(folder) == ""
    assert sorted(p.name for p in folder.iterdir()) == [MARKER, "deep", "model.safetensors", "optimizer.pt"]


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda f: os.truncate(f, 100), "has 100 bytes and not"),
    "emptied": (lambda f: os.truncate(f, 0), "has 0 bytes and not"),
    "gone": (lambda f: f.unlink(), "is gone"),
    "flipped": (lambda f: f.write_bytes(bytes([f.read_bytes()[0] ^ 1]) + f.read_bytes()[1:]), ""),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), "is gone"),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_every_damage_to_a_file_is_found_and_named(tmp_path: Path, name: str, how: str) -> None:
    folder = made(tmp_path, 8)
    damage, said = DAMAGE[how]
    damage(folder / name)
    assert why(folder).startswith(f"{name} {said}".strip())


@pytest.mark.parametrize("place", range(0, 400, 7))
def test_no_flipped_byte_of_the_marker_passes(tmp_path: Path, place: int) -> None:
    folder = made(tmp_path, 8)
    content = bytearray((folder / MARKER).read_bytes())
    content[place] ^= 1
    (folder / MARKER).write_bytes(content)
    assert why(folder) == f"{MARKER} is damaged"


def test_what_is_no_checkpoint_of_this_run_is_told_by_its_reason(tmp_path: Path) -> None:
    mine, other = made(tmp_path, 8), made(tmp_path, 9, "b" * 32)
    assert why(other) == "it belongs to another run"
    shutil.copytree(mine, tmp_path / "checkpoint-12")
    assert why(tmp_path / "checkpoint-12") == f"{MARKER} is that of step 8"
    (mine / "more.pt").write_bytes(b"x")
    assert why(mine) == "more.pt was put there later"
    (tmp_path / "checkpoint-20").mkdir()
    unfinished = f"it has no {MARKER}, so it was never finished or is none of this program's"
    assert why(tmp_path / "checkpoint-20") == unfinished
    assert [found.step for found in complete_ones(tmp_path, RUN)] == []


def test_the_oldest_go_but_neither_the_newest_nor_the_best(tmp_path: Path) -> None:
    for step in (2, 4, 10, 12):
        made(tmp_path, step)
    made(tmp_path, 6, "b" * 32)  # of another run: not ours to remove
    rotate(tmp_path, RUN, 2, str(tmp_path / "elsewhere" / "checkpoint-2"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-2", "checkpoint-6"]
    rotate(tmp_path, RUN, None, None)
    rotate(tmp_path, RUN, 1, str(tmp_path / "checkpoint-2"))
    assert [found.step for found in complete_ones(tmp_path, RUN)] == [2, 12]
    rotate(tmp_path, RUN, 1, None)
    assert [found.step for found in complete_ones(tmp_path, RUN)] == [12]


def test_what_a_kill_leaves_is_removed_at_the_next_start_and_said(tmp_path: Path) -> None:
    made(tmp_path, 2)
    for step, run_id in ((4, RUN), (6, "b" * 32)):
        checkpoints.begin(tmp_path / f"checkpoint-{step}", run_id)
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoint-8").mkdir()  # nobody's
    (tmp_path / "eval").mkdir()
    for name in (f".metrics.jsonl.{'0' * 32}", f"eval/.step-2.json.{'f' * 32}", ".hidden", ".gitignore"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".rehearsal-x1_y").mkdir()
    (tmp_path / f".removed-checkpoint-0.{'1' * 32}").mkdir()
    assert sweep(tmp_path, RUN) == [
        "checkpoint-4 was being written when the run ended: removed",
        "4 temporary files of an interrupted run removed",
    ]
    left = ["checkpoint-2", "checkpoint-6", "checkpoint-8", "eval", ".hidden", ".gitignore"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(left)
    assert sweep(tmp_path, RUN) == []


def test_a_kill_behind_the_marker_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    folder = made(tmp_path, 2)
    (folder / ".writing").write_text(RUN)
    assert why(folder) == ""
    assert sweep(tmp_path, RUN) == []
    assert not (folder / ".writing").exists()


def test_a_checkpoint_that_is_removed_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a kill comes before its files are."""
    folder = made(tmp_path, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    remove(folder)
    assert complete_ones(tmp_path, RUN) == []
    monkeypatch.undo()
    assert sweep(tmp_path, RUN) == ["1 temporary file of an interrupted run removed"]
    assert list(tmp_path.iterdir()) == []


def test_processes_share_the_bytes_out_evenly_and_read_every_file_once() -> None:
    sizes = {f"shard-{i}": 100 - i for i in range(8)} | {"trainer_state.json": 3, "rng": 1}
    parts = [checkpoints.share(sizes, rank, 3) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    loads = [sum(sizes[name] for name in part) for part in parts]
    assert max(loads) - min(loads) <= 100
    assert checkpoints.share(sizes, 0, 1) == sorted(sizes, key=lambda name: (-sizes[name], name))
