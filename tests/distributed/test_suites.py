"""Suites on two processes: the numbers of one process, also where one of the two was killed without warning."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from distributed.launching import HERE, command, environment
from tiny import tiny_tokenizer
from zoo import tiny_model


def start(label: str, place: Path, out: str, **more: str) -> subprocess.CompletedProcess[str]:
    words = ["eval", "model", "--suite", "held.yaml", "--out", out]
    return subprocess.run(
        [*command(label, HERE / "suite_worker.py"), *words],
        cwd=place,
        env=environment(label) | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def result(place: Path, out: str) -> dict[str, Any]:
    return json.loads((place / out / "held.json").read_text())


@pytest.mark.slow
def test_a_killed_suite_of_two_processes_ends_with_the_numbers_of_one(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}?", "chosen": " It is so" + " so" * (i % 5), "rejected": " no"} for i in range(60)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.yaml").write_text("kind: preference\npairs: held.jsonl\nreference: start\n")
    tokenizer = tiny_tokenizer(chat=False)
    for seed, name in enumerate(("start", "model")):
        tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64, seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    killed = start("ddp", tmp_path, "two", ALIGN_TEST_DIE_AT="1:3")
    assert killed.returncode != 0
    assert not (tmp_path / "two/held.json").exists()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "two/held.parts").iterdir()}
    assert 3 <= len(before) < 16
    resumed = start("ddp", tmp_path, "two")
    assert resumed.returncode == 0, resumed.stderr
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "two/held.parts").iterdir()}
    assert len(after) == 16  # of 60 pairs under two models
    assert {file: after[file] for file in before} == before
    alone = start("single", tmp_path, "one")
    assert alone.returncode == 0, alone.stderr
    one, two = result(tmp_path, "one"), result(tmp_path, "two")
    assert (one["figures"], one["items"]) == (two["figures"], two["items"])
    assert one["figures"]["margin"]["n"] == 60
