"""The report that is rewritten while a run trains, on run directories made from values."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_records import DPO, span
from transformers import TrainerControl, TrainerState

from align.probes.budget import Budget
from align.runs.directory import RunDirectory
from align.trainers.live import REFRESH, Live


def directory(folder: Path, records: int) -> RunDirectory:
    """A run with so many log steps."""
    folder.mkdir()
    (folder / "recipe.lock.yaml").write_text(yaml.safe_dump({"recipe": DPO, "base": "."}))
    steps = ({"step": i, "loss": 1 / i, "rewards/margins": 0.1} for i in range(1, records))
    reading = {"chosen": span(-1, 0.5), "rejected": span(-2, 0.5)}
    with open(folder / "metrics.jsonl", "w") as file:
        file.write(json.dumps({"step": 0, "probe": reading}) + "\n")
        file.writelines(json.dumps(record) + "\n" for record in steps)
    return RunDirectory(folder)


def seconds(*times: float) -> Any:
    """A clock that shows these times in turn."""
    shown: Iterator[float] = iter(times)
    return lambda: next(shown)


def log(live: Live, step: int, of: int = 10**9) -> None:
    state = TrainerState(global_step=step, max_steps=of)
    live.on_log(None, state, TrainerControl(), logs={"loss": 0.5})  # type: ignore[arg-type]


def begin(live: Live) -> None:
    live.on_train_begin(None, TrainerState(), TrainerControl())  # type: ignore[arg-type]


def test_a_reader_finds_a_whole_page_at_every_moment(tmp_path: Path) -> None:
    run, done = directory(tmp_path / "run", 20), threading.Event()
    file, seen = tmp_path / "run" / "report.html", set[str]()

    def read() -> None:
        last = False
        while not last:
            last = done.is_set()  # asked before the reading, so that one comes after the last page
            if file.exists():
                seen.add(file.read_text())
            time.sleep(0.005)

    live = Live(run, Budget(1e9, ["probe"]), echo=lambda _: None)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        begin(live)
        live.budget.begin()
        for step in (20, 21, 22):
            run.append_metrics({"step": step, "loss": 0.5})
            log(live, step)
    finally:
        done.set()
        thread.join()
    assert live.budget.summary()["probes"]["report"]["readings"] == 4
    assert len(seen) >= 3
    for page in seen:
        assert page.lstrip().startswith("<!DOCTYPE html>")
        assert page.rstrip().endswith("</html>")
        assert f'<meta http-equiv="refresh" content="{REFRESH}">' in page
    assert (
        sorted({step for step in (19, 20, 21, 22) for page in seen if f"are of step {step} or earlier" in page})[-1]
        == 22
    )


def test_it_waits_until_the_budget_pays_for_it(tmp_path: Path) -> None:
    """A report of 2 s has half of 10 %, so it may come again after 40 s of training, not before."""
    # the start's report from 0 to 2, training from 10; asked at 49 and at 51, written until 53, asked at 60
    budget = Budget(0.1, ["probe"], seconds(0, 2, 10, 49, 51, 51, 53, 60))
    live = Live(directory(tmp_path / "run", 5), budget, echo=lambda _: None)
    begin(live)
    budget.begin()
    file = tmp_path / "run" / "report.html"
    written = []
    for step in (5, 6, 7):
        file.unlink(missing_ok=True)
        log(live, step)
        written.append(file.exists())
    assert written == [False, True, False]


def test_only_the_writing_process_writes_and_never_at_the_last_step(tmp_path: Path) -> None:
    run = directory(tmp_path / "run", 5)
    other = Live(RunDirectory(run.path, writer=False), Budget(1e9, []), echo=pytest.fail)
    begin(other)
    other.budget.begin()
    log(other, 5)
    assert not (run.path / "report.html").exists()
    live = Live(run, Budget(1e9, []), echo=lambda _: None)
    begin(live)
    live.budget.begin()
    (run.path / "report.html").unlink()
    log(live, 10, of=10)
    assert not (run.path / "report.html").exists()


def test_a_fault_is_said_once_and_ends_it(tmp_path: Path) -> None:
    run, lines = directory(tmp_path / "run", 5), list[str]()
    (run.path / "report.html").mkdir()
    live = Live(run, Budget(1e9, []), echo=lines.append)
    begin(live)
    live.budget.begin()
    log(live, 5)
    assert len(lines) == 1
    assert lines[0].startswith("watch.live: the report could not be written (UserError: ")
    assert lines[0].endswith("; the run goes on without")


def test_of_many_records_only_new_ones_are_read_again(tmp_path: Path) -> None:
    run = directory(tmp_path / "run", 5_000)
    live = Live(run, Budget(1e9, []), echo=lambda _: None)
    begin(live)
    live.budget.begin()
    with open(run.path / "metrics.jsonl", "r+b") as file:
        file.write(b"#" * 1000)  # what was read is not looked at again, or these lines would be missed
    run.append_metrics({"step": 5_001, "loss": 0.5})
    log(live, 5_001)
    page = (run.path / "report.html").read_text()
    assert "are of step 5,001 or earlier" in page
    assert "no JSON object" not in page
