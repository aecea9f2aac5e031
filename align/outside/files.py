"""Files that others made. They are opened only where they are files, and read as far as a limit goes."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO, cast

from align.errors import UserError
from align.outside.limits import ENTRIES, MIB, NAME, NESTING, PATH, UNPACKED_FREE, UNPACKED_RATIO, WHOLE_NUMBER_BITS

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LONG_NUMBER = re.compile(r"\d{19}")  # no shorter one has more than 64 bits


class Refused(UserError, OSError):
    """A file that is not read. Whoever handles errors of reading handles it too; else it is a sentence of its own."""

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        super().__init__(errno.EINVAL, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: cannot be read ({self.strerror})."


def opened(path: str | os.PathLike[str], most: int | None = None) -> BinaryIO:
    """A file to read from.

    Args:
        most: bytes that it may have; None for any number.

    Raises:
        Refused: where it is a pipe, a socket or a device, which may never end, or has more bytes.
        OSError: as ``open`` does.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    about = os.fstat(number)
    kind, size = stat.S_IFMT(about.st_mode), about.st_size
    why = ""
    if kind in _KINDS:
        why = f"it is {_KINDS[kind]}, and only files are read"
    elif most is not None and size > most:
        why = f"it has {size:,} bytes, and at most {most:,} are read"
    if why or kind == stat.S_IFDIR:
        os.close(number)
        raise Refused(path, why) if why else IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return os.fdopen(number, "rb")


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """All bytes of a file. Raises as ``opened`` does."""
    with opened(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:  # it has grown, or does not say how long it is
        raise Refused(path, f"it has more than {most:,} bytes, and no more are read")
    return content


def read_text(path: str | os.PathLike[str], most: int, encoding: str = "utf-8") -> str:
    """All text of a file. Raises as ``opened`` does, and ``UnicodeDecodeError``."""
    return read_bytes(path, most).decode(encoding)


def only_files(folder: Path, *, own: bool) -> None:
    """Look through a folder before anything in it is read.

    Args:
        own: whether everything must lie in the folder itself, since it will be written to; else links may lead out, as
            those of the Hub's cache do.

    Raises:
        UserError: naming what is no file (a pipe would hang, a device may never end), or a link that leads out.
    """
    root, count = os.path.realpath(folder), 0
    for place, below, names in os.walk(folder):
        count += len(below) + len(names)
        if count > ENTRIES:
            raise UserError(
                f"{folder} holds more than {ENTRIES:,} files and folders; name a model's or a run's own folder."
            )
        for path in (os.path.join(place, name) for name in (*below, *names)):
            if own and os.path.islink(path) and not os.path.realpath(path).startswith(root + os.sep):
                raise UserError(
                    f"{path} is a link that leads out of the folder, to {os.path.realpath(path)}. What belongs to a "
                    "run lies in its own directory: put a copy in place of the link, or remove it."
                )
            if (kind := _strange(path)) is not None:
                raise UserError(f"{path} is {kind}, and only files are read: remove it.")


def _strange(path: str) -> str | None:
    """What stands at a place where only files and folders may; None where it is one, or a link to nothing."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except OSError:
        return None


def name_problem(path: str) -> str | None:
    """Why no file system has such a path, as a clause for people; None where one may."""
    if "\0" in path:
        return "it holds a character 0"
    longest, whole = (
        max(len(part.encode("utf-8", "surrogatepass")) for part in parts) for parts in (path.split("/"), [path])
    )
    if longest > NAME:
        return f"a name in it has {longest:,} bytes, and at most {NAME} are possible"
    return f"it has {whole:,} bytes, and at most {PATH:,} are possible" if whole > PATH else None


def unpacked(path: str | os.PathLike[str]) -> BinaryIO:
    """What a gzipped file holds, up to what ``may_unpack`` to; beyond that ``read`` raises ``Refused``."""
    return io.BufferedReader(cast(Any, _Unpacked(path)), MIB)


class _Unpacked(io.RawIOBase):
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._packed = opened(path)
        self._stream = gzip.GzipFile(fileobj=self._packed)
        self._path, self._count = path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(memoryview(buffer)[:MIB])
        self._count += count
        most = may_unpack(self._packed.tell())  # of what was read, so that a bomb is known before its end
        if self._count > most:
            raise too_packed(self._path, most)
        return count

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._packed.close()
        super().close()


def may_unpack(size: int) -> int:
    """To how many bytes ``size`` packed bytes may unpack."""
    return max(UNPACKED_FREE, UNPACKED_RATIO * size)


def too_packed(path: str | os.PathLike[str], most: int) -> Refused:
    """A file that unpacks to more than ``most`` bytes."""
    return Refused(
        path,
        f"it unpacks to more than {most:,} bytes, over {UNPACKED_RATIO} times its size, as no rows do; if you made "
        "it yourself, unpack it",
    )


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: where it is no JSON, or nested deeper than ``limits.NESTING``.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    few = (
        text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    ) <= NESTING
    if not few and _deep(value):
        raise ValueError(_DEEP)
    return value


_DEEP = f"it is nested more than {NESTING} levels deep"


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(NESTING + 1):
        level = [item for one in level for item in _items(one)]
        if not level:
            return False
    return True


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def long_number(text: str | None, value: Any) -> int | None:
    """A whole number in a value that Arrow has no type for; ``text`` is the JSON that it was parsed from, if known."""
    if text is not None and _LONG_NUMBER.search(text) is None:
        return None
    level = [value]
    while level:
        for one in level:
            if isinstance(one, int) and not -(1 << WHOLE_NUMBER_BITS - 1) <= one < 1 << WHOLE_NUMBER_BITS - 1:
                return one
        level = [item for one in level for item in _items(one)]
    return None


def json_file(path: Path, most: int) -> Any:
    """The value of a JSON file. Raises ``ValueError`` as ``parsed`` does, and as ``opened`` does."""
    return parsed(read_bytes(path, most))
