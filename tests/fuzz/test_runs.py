"""Checkpoints, models, run records, stores and logs that were damaged, or made to deceive."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from contained import contained
from exploring import cases, explore
from hypothesis import strategies as st
from material import changed, damaged, json_text
from small_run import recipe, small_world

from align.cli.main import main
from align.reference.shards import write
from align.reference.store import LogProbStore
from align.runs.checkpoints import MARKER

WAYS = ("bytes", "bytes", "values", "values", "emptied", "removed", "pipe", "link", "folder")
Damage = tuple[str, str, Any]


class Evil:
    """A pickle that makes a file."""

    def __reduce__(self) -> Any:
        return os.system, ("touch elsewhere",)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a recipe, and a run of it that was ended after its second checkpoint."""
    place = tmp_path_factory.mktemp("run") / "place"
    place.mkdir()
    train = {"max_steps": 3, "save_steps": 1, "save_total_limit": 2, "eval_strategy": "no", "eval_steps": None}
    made = recipe(world, place, watch={"probe_pairs": 2, "probe_answers": 1, "every": 1}, train=train)
    values = {**made.dump(), "output": "out", "reference": {"store": False}}
    (place / "r.yaml").write_text(yaml.safe_dump(values))
    outcome = contained(lambda: main(["train", "r.yaml"]), place, may_write=("out",))
    assert outcome.code == 0, outcome.said
    (place / "out" / "verdict.json").unlink()
    shutil.rmtree(place / "out" / "checkpoint-3", ignore_errors=True)
    shutil.rmtree(place / "home")
    return place


def damages(folder: Path, wanted: Callable[[Path], bool] = lambda file: True) -> st.SearchStrategy[Damage]:
    """A file of a folder, a way to damage it, and what it holds then."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and wanted(file))

    def of(file: Path) -> st.SearchStrategy[Damage]:
        content, name = file.read_bytes(), file.relative_to(folder).as_posix()
        parts = {"bytes": damaged(content, (b"\0" * 64, b"{", b"[" * 2000, b"\n")), "values": st.none()}
        if (value := _value(file)) is not None:
            parts["values"] = changed(value)
        elif file.suffix in (".pt", ".pth", ".bin"):
            parts["values"] = st.just(Evil())
        return st.sampled_from(WAYS).flatmap(
            lambda way: st.tuples(st.just(name), st.just(way), parts.get(way, st.none()))
        )

    return st.sampled_from(files).flatmap(of)


def _value(file: Path) -> Any:
    if file.suffix == ".json":
        return json.loads(file.read_bytes())
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    return yaml.safe_load(file.read_text()) if file.suffix == ".yaml" else None


def damage(folder: Path, how: Damage) -> None:
    """Do it; a marker beside the file is made to agree, as somebody would who means it."""
    name, way, new = how
    file = folder / name
    if way == "bytes":
        file.write_bytes(new)
    elif way == "values" and isinstance(new, Evil):
        torch.save({"state": new}, file)
    elif way == "values" and file.suffix == ".jsonl":
        file.write_text("".join(json_text(line) + "\n" for line in new))
    elif way == "values" and new is not None:
        file.write_text(json_text(new) if file.suffix == ".json" else yaml.dump(new), errors="replace")
    elif way in ("emptied", "values"):
        file.write_bytes(b"")
    else:
        file.unlink()
    if way == "pipe":
        os.mkfifo(file)
    if way == "link":
        file.symlink_to(folder.parent.parent / "elsewhere")
    if way == "folder":
        file.mkdir()
    if file.is_file():
        _agree(file)


def _agree(file: Path) -> None:
    marker = file.parent / MARKER
    if not marker.is_file() or file.name == MARKER:
        return
    content, about = file.read_bytes(), json.loads(marker.read_bytes())
    about["files"][file.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del about["sha256"]
    about["sha256"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    marker.write_text(json.dumps(about))


def copied(source: Path, place: Path) -> None:
    (place.parent / "elsewhere").write_text("nothing of this run\n")
    shutil.copytree(source, place, dirs_exist_ok=True)


@cases(3)
def test_runs_that_go_on(count: int, run: Path, tmp_path: Path) -> None:
    def case(how: Damage, place: Path) -> Callable[[], int]:
        copied(run, place)
        damage(place / "out", how)
        return lambda: main(["train", "r.yaml", "--resume"])

    wanted = damages(run / "out", lambda file: file.parent.name != "model" and file.name != "README.md")
    explore(wanted, count, tmp_path, case, may_write=("out",))


@cases(4)
def test_models(count: int, world: Path, run: Path, tmp_path: Path) -> None:
    def case(how: Damage, place: Path) -> Callable[[], int]:
        copied(world / "model", place / "m")
        shutil.copy(run / "r.yaml", place / "r.yaml")
        damage(place / "m", how)
        words = ["model.id=m", "train.max_steps=1", "train.save_strategy=no", "watch.probe_pairs=0"]
        return lambda: main(["train", "r.yaml", *words])

    explore(damages(world / "model"), count, tmp_path, case, may_write=("out",))


@cases(4)
def test_reports(count: int, run: Path, tmp_path: Path) -> None:
    def case(how: Damage, place: Path) -> Callable[[], int]:
        copied(run, place)
        damage(place / "out", how)
        return lambda: main(["show", "run", "out"])

    wanted = damages(
        run / "out", lambda file: file.suffix in (".json", ".jsonl", ".yaml") and file.parent.name == "out"
    )
    explore(wanted, count, tmp_path, case)


@cases(8)
def test_stores(count: int, tmp_path: Path) -> None:
    keys = sorted(hashlib.sha256(bytes([i])).digest() for i in range(20))
    made = tmp_path / "made"
    made.mkdir()
    write(made, keys, [np.full(i + 1, -float(i), dtype=np.float32) for i in range(20)])
    (shard,) = made.iterdir()

    def case(content: bytes, place: Path) -> Callable[[], int]:
        (place / "store" / "key").mkdir(parents=True)
        (place / "store" / "key" / shard.name).write_bytes(content)
        os.mkfifo(place / "store" / "key" / "pipe.safetensors")

        def work() -> int:
            store = LogProbStore(place / "store", "key")
            for key in keys:
                if key in store:
                    row = store.get(key)
                    assert row[0] == 1 - len(row), "a row is as it was written, or it is not there"
            return 0

        return work

    header = json.loads(shard.read_bytes()[8 : 8 + int.from_bytes(shard.read_bytes()[:8], "little")])
    rest = shard.read_bytes()[8 + int.from_bytes(shard.read_bytes()[:8], "little") :]

    def with_header(value: Any) -> bytes:
        text = json_text(value).encode()
        return len(text).to_bytes(8, "little") + text + rest

    contents = damaged(shard.read_bytes(), (b"[" * 3000, b"\xff" * 8)) | changed(header).map(with_header)
    explore(contents, count, tmp_path / "cases", case, may_write=("store",))


@cases(12)
def test_logs(count: int, tmp_path: Path) -> None:
    items = {str(i): {"prob": 0.5, "avg_loss": 0.6931, "rougeL_recall": 0.5, "rouge1_recall": 0.4} for i in range(3)}
    wrong = {str(i): {"prob": [0.1, 0.2], "avg_loss": [2.3, 1.6]} for i in range(3)}
    log = {
        **{f"{name}_Q_A_Prob": {"value_by_index": items} for name in ("forget", "retain", "ra", "wf")},
        **{f"{name}_Q_A_ROUGE": {"value_by_index": items} for name in ("forget", "retain", "ra", "wf")},
        "forget_Q_A_PARA_Prob": {"value_by_index": items},
        "forget_Q_A_PERT_Prob": {"value_by_index": wrong},
        "align": {"rows": "all", "epsilon": 1e-10, "limit": None},
    }
    texts = changed(log).map(json_text).map(str.encode) | damaged(json_text(log).encode(), (b"[" * 3000, b"1" * 5000))
    suites = st.sampled_from(["tofu", "tofu", "muse"])

    def case(example: tuple[str, bytes], place: Path) -> Callable[[], int]:
        (place / "log.json").write_bytes(example[1])
        return lambda: main(["eval", example[0], "--log", "log.json"])

    explore(st.tuples(suites, texts), count, tmp_path, case)


def test_a_pickle_that_does_harm_is_seen_to(run: Path, tmp_path: Path) -> None:
    """What the other tests rely on: the pickle works where it is loaded without care."""
    place = tmp_path / "place"
    place.mkdir()
    torch.save({"state": Evil()}, place / "evil.pt")

    def careless() -> int:
        torch.load(place / "evil.pt", weights_only=False)
        return 0

    assert contained(careless, place).wrong == "it wrote place/elsewhere"
