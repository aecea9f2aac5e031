"""Work in several processes: in order, on all of them, and done here where one of them dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from align.errors import UserError
from align.runs import parallel
from align.runs.parallel import apart, cores, in_order


def square(number: int) -> bytes:
    return f"{number * number} {os.getpid()}".encode()


def test_pieces_come_in_order_and_from_all_processes() -> None:
    found = [content.split() for content in in_order(square, 40, 3)]
    assert [int(value) for value, _ in found] == [n * n for n in range(40)]
    pids = [int(pid) for _, pid in found]
    assert len(set(pids)) == 3
    assert os.getpid() not in pids
    assert pids[0] == pids[3] == pids[39]


def test_few_pieces_are_computed_here() -> None:
    assert {int(content.split()[1]) for content in in_order(square, 15, 3)} == {os.getpid()}
    assert list(in_order(square, 0, 3)) == []


def test_large_pieces_come_whole() -> None:
    pieces = list(in_order(lambda n: bytes([n]) * (3 << 20), 16, 2))
    assert [(len(piece), piece[0], piece[-1]) for piece in pieces] == [(3 << 20, n, n) for n in range(16)]


def test_what_a_killed_process_owes_is_computed_here() -> None:
    here = os.getpid()

    def killed(number: int) -> bytes:
        if number == 9 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return square(number)

    found = [content.split() for content in in_order(killed, 40, 2)]
    assert [int(value) for value, _ in found] == [n * n for n in range(40)]
    assert [n for n, (_, pid) in enumerate(found) if int(pid) == here] == list(range(9, 40, 2))


def test_an_error_shows_as_it_is_and_no_process_is_left() -> None:
    def wrong(number: int) -> bytes:
        if number == 20:
            raise UserError("row 20 is wrong")
        return str(os.getpid()).encode()

    contents = in_order(wrong, 40, 2)
    pids = {int(next(contents)) for _ in range(20)}
    with pytest.raises(UserError, match=r"^row 20 is wrong$"):
        next(contents)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_with_a_reader_that_is_killed(tmp_path: Path) -> None:
    reader = os.fork()
    if reader == 0:

        def piece(number: int) -> bytes:
            (tmp_path / str(os.getpid())).touch()
            return bytes(1 << 20)

        next(in_order(piece, 1000, 2))
        time.sleep(600)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    for _ in range(500):
        if not any(Path("/proc", worker.name).exists() for worker in tmp_path.iterdir()):
            return
        time.sleep(0.02)
    raise AssertionError("a worker is left")


def test_work_apart_says_whether_it_came_to_its_end(tmp_path: Path) -> None:
    assert apart((tmp_path / "done").touch)
    assert (tmp_path / "done").exists()
    assert not apart(lambda: 1 / 0)
    assert not apart(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_cores_are_those_that_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(parallel, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (cores(), cores(shared=True)) == (8, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert (cores(), cores(shared=True)) == (8, 2)
    for quota, expected in (("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(quota + "\n")
        assert cores() == expected
