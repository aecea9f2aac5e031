"""Files that others made are opened where they are files, and read as far as a limit goes."""

from __future__ import annotations

import gzip
import os
import socket
import time
from pathlib import Path

import pytest

from align.errors import UserError
from align.outside import files as outside
from align.outside import limits


@pytest.mark.parametrize("what", ["a pipe", "a socket", "a device"])
def test_what_may_never_end_is_not_opened(what: str, tmp_path: Path) -> None:
    place = tmp_path / "x"
    if what == "a pipe":
        os.mkfifo(place)
    elif what == "a device":
        place.symlink_to("/dev/zero")
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(place))
        server.close()
    began = time.monotonic()
    with pytest.raises(OSError, match=r"only files|No such device") as error:
        outside.read_bytes(place, 10)
    assert time.monotonic() - began < 5
    if what != "a socket":  # which the system refuses to open
        assert str(error.value) == f"{place}: cannot be read (it is {what}, and only files are read)."
        assert isinstance(error.value, UserError)


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        outside.opened(tmp_path)


def test_a_file_has_so_many_bytes_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"12345")
    assert outside.read_bytes(file, 5) == b"12345"
    with pytest.raises(UserError) as error:
        outside.read_bytes(file, 4)
    assert str(error.value) == f"{file}: cannot be read (it has 5 bytes, and at most 4 are read)."
    # of /proc nobody knows beforehand
    with pytest.raises(UserError) as error:
        outside.read_bytes("/proc/self/status", 4)
    assert str(error.value) == "/proc/self/status: cannot be read (it has more than 4 bytes, and no more are read)."


def test_a_bomb_is_known_by_its_ratio_before_its_end(tmp_path: Path) -> None:
    """Zeros pack to a thousandth."""
    bomb, fine = tmp_path / "bomb.gz", tmp_path / "fine.gz"
    bomb.write_bytes(gzip.compress(bytes(30 * limits.MIB), 9))
    with outside.unpacked(bomb) as stream:
        with pytest.raises(UserError) as error:
            stream.read(limits.GIB)
        assert stream.raw._count < 10 * limits.MIB  # type: ignore[attr-defined]
    assert str(error.value) == (
        f"{bomb}: cannot be read (it unpacks to more than 8,388,608 bytes, over 100 times its size, as no rows do; if "
        "you made it yourself, unpack it)."
    )
    text = os.urandom(limits.MIB) + bytes(limits.MIB)
    fine.write_bytes(gzip.compress(text * 12))
    with outside.unpacked(fine) as stream:
        assert stream.read() == text * 12


@pytest.mark.parametrize(("levels", "fits"), [(64, True), (65, False), (900, False), (200_000, False)])
def test_json_has_so_many_levels(levels: int, fits: bool) -> None:
    text = "[" * levels + "1" + "]" * levels
    if fits:
        assert outside.parsed(text)[0] is not None
        assert outside.parsed("[" + "[],{}," * 500 + "1]")[-1] == 1  # many beside each other are none in each other
        return
    with pytest.raises(ValueError, match=r"^it is nested more than 64 levels deep$"):
        outside.parsed(text)


@pytest.mark.parametrize(
    ("number", "long"), [(2**63 - 1, False), (2**63, True), (-(2**63), False), (-(2**63) - 1, True), (10**30, True)]
)
def test_whole_numbers_have_64_bits(number: int, long: bool) -> None:
    text = f'{{"a": [{{"b": {number}}}], "c": "99999999999999999999"}}'
    assert outside.long_number(text, outside.parsed(text)) == (number if long else None)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("a/" + "n" * 255, None),
        ("a/" + "n" * 256, "a name in it has 256 bytes, and at most 255 are possible"),
        ("ü" * 128, "a name in it has 256 bytes, and at most 255 are possible"),
        ("a/" * 2048 + "a", "it has 4,097 bytes, and at most 4,096 are possible"),
        ("a\0b", "it holds a character 0"),
    ],
)
def test_names_that_no_file_has(path: str, why: str | None) -> None:
    assert outside.name_problem(path) == why


def test_a_folder_is_looked_through_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "deep").mkdir(parents=True)
    other.write_text("")
    (run / "deep" / "inside").write_text("")
    (run / "link").symlink_to(run / "deep" / "inside")
    (run / "nothing").symlink_to(run / "not there")
    outside.only_files(run, own=True)
    (run / "deep" / "out").symlink_to(other)
    outside.only_files(run, own=False)
    with pytest.raises(UserError) as error:
        outside.only_files(run, own=True)
    assert str(error.value) == (
        f"{run}/deep/out is a link that leads out of the folder, to {other}. What belongs to a run lies in its own "
        "directory: put a copy in place of the link, or remove it."
    )
    (run / "deep" / "out").unlink()
    os.mkfifo(run / "deep" / "pipe")
    for own in (True, False):
        with pytest.raises(UserError, match=f"^{run}/deep/pipe is a pipe, and only files are read: remove it.$"):
            outside.only_files(run, own=own)
    monkeypatch.setattr(outside, "ENTRIES", 3)
    with pytest.raises(UserError, match="holds more than 3 files and folders; name a model's or a run's own folder"):
        outside.only_files(run, own=True)
