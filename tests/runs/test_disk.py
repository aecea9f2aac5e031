"""Records are whole or not there, and a write that fails is a sentence: with real limits of the system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shortage import files_of
from tokenizers import Tokenizer, models

from align.errors import DoesNotFit, UserError
from align.runs.damage import reading
from align.runs.directory import METRICS, RunDirectory
from align.runs.disk import on_disk


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be longer than 1,000 bytes here, as after ``ulimit -f``."""
    with files_of(1000):
        yield


def test_a_record_that_does_not_fit_leaves_no_part_of_itself(tmp_path: Path, small_files: None) -> None:
    run = RunDirectory(tmp_path)
    run.append_metrics({"step": 1, "text": "a" * 600})
    before = (tmp_path / METRICS).read_bytes()
    with pytest.raises(DoesNotFit) as caught, on_disk(tmp_path):
        run.append_metrics({"step": 2, "text": "b" * 600})
    said = "the file would be larger than files may be here (ulimit -f). Make room. Nothing was recorded yet. Start"
    assert str(caught.value).startswith(f"{tmp_path} cannot be written: {said}")
    assert (tmp_path / METRICS).read_bytes() == before
    run.append_metrics({"step": 3})
    assert [record["step"] for record in run.metrics()] == [1, 3]


def test_libraries_that_write_by_themselves_are_understood(tmp_path: Path, small_files: None) -> None:
    weights = {"a": torch.zeros(1000)}
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    for save in (
        lambda file: save_file(weights, file),
        lambda file: torch.save(weights, file),
        lambda file: tokenizer.save(str(file)),
    ):
        with pytest.raises(DoesNotFit, match=r"cannot be written: the (file would be larger|disk is full)"), on_disk():
            save(tmp_path / "weights")


def test_a_record_behind_a_line_that_a_kill_cut_is_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n{"step": 2, "loss": 0.')
    run = RunDirectory(tmp_path)
    run.append_metrics({"step": 3})
    assert run.metrics() == [{"step": 1}, {"step": 3}]
    assert (tmp_path / METRICS).read_bytes() == b'{"step": 1}\n{"step": 2, "loss": 0.\n{"step": 3}\n'


def test_lines_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    lines = [b'{"step": 1}', b"[1]", b"3", b'{"loss": 1}', b'{"step": -1}', b'{"step": true}', b"\xff\xfe", b"[" * 9999]
    (tmp_path / METRICS).write_bytes(b"\n".join([*lines, b'{"round": 2}', b""]))
    assert RunDirectory(tmp_path).metrics() == [{"step": 1}, {"round": 2}]


def test_a_directory_that_is_gone_is_said_and_a_missing_file_of_others_is_none_of_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError) as caught, on_disk(run):
        (run / "x").write_text("")
    assert str(caught.value).startswith(
        f"{run} is gone: it was moved or removed while the run wrote to it. Put it back."
    )
    assert not caught.value.shared
    run.mkdir()
    with pytest.raises(FileNotFoundError), on_disk(run):
        (tmp_path / "elsewhere").read_text()


def test_a_lock_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    file = tmp_path / "recipe.lock.yaml"
    for content in (b"", b"recipe: [", b"\xff", b"- a", b"recipe: 3", b"a: &a [*a]"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{file} is damaged \(.+\)\. Put it back from a copy\.$"):
            RunDirectory(tmp_path).begin({}, resume=True)
    file.write_text("recipe: {}\n")
    with pytest.raises(UserError, match=r"is damaged \(it has no data\)\."):
        RunDirectory(tmp_path).locked("data")


def test_what_cannot_be_taken_apart_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, reading(tmp_path / "unseen.json"):
        raise KeyError("samples")
    assert str(caught.value) == f"{tmp_path}/unseen.json is damaged (KeyError: 'samples'). Put it back from a copy."
