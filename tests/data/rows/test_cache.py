"""What is kept of rows: found again by content alone, made once, never believed when damaged."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from align.data.rows import cache
from align.data.rows.cache import Made, as_dataset, kept, key_of, made_of, table_digest
from align.data.rows.sources import from_rows
from align.errors import UserError

ROWS = [{"prompt": f"p{i}", "turns": [{"role": "user", "content": "é" * i}], "n": i} for i in range(5)]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "align"


class Maker:
    """Makes the same entry each time, and counts in a file, since it works in other processes."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.file, self.seconds = folder / "made", seconds

    def __call__(self, alone: bool) -> Made:
        with self.file.open("a") as file:
            file.write("alone " if alone else "beside others ")
        time.sleep(self.seconds)
        return made_of(from_rows(ROWS), {"seen": {"a": [1, 2]}})

    @property
    def said(self) -> list[str]:
        return self.file.read_text().strip().split("  ") if self.file.exists() else []

    @property
    def times(self) -> int:
        return self.file.read_text().count("alone") if self.file.exists() else 0


def entry(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if path.is_dir()]
    return found


def test_an_entry_is_made_once_and_is_what_was_made(tmp_path: Path, own_folder: Path) -> None:
    make, said = Maker(tmp_path), list[str]()
    for _ in range(2):
        found = kept("k", make, said.append)
        assert as_dataset(found).to_list() == ROWS
        assert as_dataset(found).features == from_rows(ROWS).features
        assert found.facts["seen"] == {"a": [1, 2]}
    assert (make.times, said) == (1, [])
    assert sorted(path.name for path in own_folder.iterdir()) == ["k", "k.lock"]
    assert sorted(path.name for path in entry(own_folder).iterdir()) == ["entry.json", "rows.arrow"]


def flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize("name", ["rows.arrow", "entry.json"])
@pytest.mark.parametrize(
    "damage",
    [flip, lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"{}", None],
    ids=["flipped", "cut", "empty", "other", "gone"],
)
def test_a_damaged_entry_is_named_and_made_again(
    damage: Callable[[bytes], bytes] | None, name: str, tmp_path: Path, own_folder: Path
) -> None:
    make, said = Maker(tmp_path), list[str]()
    kept("k", make)
    file = entry(own_folder) / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    assert as_dataset(kept("k", make, said.append)).to_list() == ROWS
    assert make.times == 2
    assert len(said) == 1
    assert said[0].startswith(f"prepared rows: {own_folder / 'k'} is damaged (")
    assert said[0].endswith("), so they are prepared again.")
    assert as_dataset(kept("k", make, said.append)).to_list() == ROWS
    assert (make.times, len(said)) == (2, 1)


def test_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    make, found = Maker(tmp_path, seconds=0.5), list[Made]()
    threads = [threading.Thread(target=lambda: found.append(kept("k", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.times == 1
    assert [as_dataset(made).to_list() for made in found] == [ROWS] * 4


def test_a_process_that_is_killed_leaves_nothing_that_counts(tmp_path: Path, own_folder: Path) -> None:
    ready, pid = tmp_path / "ready", os.fork()
    if pid == 0:  # it has its turn, and a file half written, when it is killed

        def begin(_: bool) -> Made:
            (own_folder / "k.1.tmp").mkdir()
            (own_folder / "k.1.tmp" / "rows.arrow").write_bytes(b"half")
            ready.touch()
            time.sleep(600)
            raise AssertionError

        cache.apart = lambda work: False  # type: ignore[attr-defined]
        kept("k", begin)
        os._exit(0)
    while not ready.exists():
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    make = Maker(tmp_path)
    assert as_dataset(kept("k", make)).to_list() == ROWS
    assert sorted(path.name for path in own_folder.iterdir()) == ["k", "k.lock"]


def test_a_folder_that_cannot_be_made_is_said_and_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    make, said = Maker(tmp_path), list[str]()
    assert as_dataset(kept("k", make, said.append)).to_list() == ROWS
    assert make.said == ["beside others"]
    (sentence,) = said
    assert sentence == (
        f"prepared rows cannot be kept in {tmp_path / 'cache' / 'align'} (Not a directory), so every start prepares "
        "them anew. HF_DATASETS_CACHE names another folder."
    )


def test_a_full_disk_is_said_and_done_without(
    tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "_settled", full)
    said: list[str] = []
    assert as_dataset(kept("k", Maker(tmp_path), said.append)).to_list() == ROWS
    (sentence,) = said
    assert sentence.startswith(f"prepared rows cannot be kept in {own_folder} (No space left on device), so ")
    assert [path.name for path in own_folder.iterdir()] == ["k.lock"]


def test_an_error_of_the_making_is_raised_as_it_is_and_nothing_is_kept(own_folder: Path) -> None:
    def wrong(_: bool) -> Made:
        raise UserError("row 7 is wrong")

    with pytest.raises(UserError, match=r"^row 7 is wrong$"):
        kept("k", wrong)
    assert [path.name for path in own_folder.iterdir()] == ["k.lock"]


def test_the_digest_of_a_table_is_that_of_its_rows_wherever_they_lie() -> None:
    table = from_rows(ROWS)
    expected = table_digest(table)
    halves = datasets.concatenate_datasets([from_rows(ROWS[:2]), from_rows(ROWS[2:])])
    picked = from_rows([ROWS[4], *ROWS]).select([1, 2, 3, 4, 5])
    assert table_digest(halves) == table_digest(picked) == expected
    changed = [
        from_rows([*ROWS[:4], ROWS[4] | {"prompt": "p5"}]),
        from_rows([ROWS[1], ROWS[0], *ROWS[2:]]),
        table.rename_column("n", "m"),
        table.remove_columns("n"),
        table.cast_column("n", datasets.Value("int32")),
        table.select(range(4)),
    ]
    assert len({table_digest(other)[0] for other in changed} | {expected[0]}) == 7


def test_names_of_entries_tell_values_apart() -> None:
    names = [key_of("prepared", 1), key_of("prepared", "1"), key_of("prepared", None), key_of("rows", 1)]
    assert len(set(names)) == 4
    assert key_of("prepared", {"a": 1, "b": 2}) == key_of("prepared", {"b": 2, "a": 1})


def test_nothing_is_written_beside_an_entry(tmp_path: Path, own_folder: Path) -> None:
    table: Dataset = as_dataset(kept("k", Maker(tmp_path)))
    assert table.map(lambda row: {"n": row["n"] + 1})["n"][:] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in entry(own_folder).iterdir()) == ["entry.json", "rows.arrow"]
