"""A disk that takes no more, or a folder that is gone: what an error of a write says, as a sentence."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align.errors import DoesNotFit, UserError
from align.runs.go_on import go_on

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of this disk is used up",
    errno.EFBIG: "the file would be larger than files may be here (ulimit -f)",
}
_ODD = {errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}  # something else stands where a file should
_SHUT = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
_OWN = "SafetensorError", "Exception"  # what libraries in Rust raise: older safetensors, and tokenizers
# how libraries that write by themselves (safetensors, tokenizers, Arrow) give the number of an error
_NUMBER = re.compile(r"(?:os error|[Ee]rrno) (\d+)")
# torch.save gives no number; the last one is the C++ library's, where a small file does not fit
_TORCH = "PytorchStreamWriter failed writing", "unexpected pos", "basic_ios::clear: iostream error"


@contextmanager
def on_disk(run: Path | None = None) -> Iterator[None]:
    """Say what is wrong where a write fails within; ``run`` is the directory of the run that writes, if one does.

    Raises:
        DoesNotFit: where there is no room. The process that met it raises it alone.
        UserError: where writing is not allowed, or the directory of the run is gone.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError | RuntimeError) and type(error).__name__ not in _OWN:
            raise
        raise _answer(error, run) or error from error


def is_full(error: Exception) -> bool:
    """Whether an error of a write says that there is no room."""
    return _number(error, None) in _FULL


def _answer(error: Exception, run: Path | None) -> UserError | None:
    """The sentence for an error, or None for one that is about something else."""
    number, file = _number(error, run), getattr(error, "filename", None)
    place = file if isinstance(file, str) and os.path.isabs(file) else run
    again = f" {go_on(run)}" if run is not None else ""
    if number in _FULL:
        return DoesNotFit(f"{place or 'The output'} cannot be written: {_FULL[number]}. Make room.{again}")
    answer = None
    if run is not None and number == errno.ENOENT and not run.exists():
        answer = UserError(f"{run} is gone: it was moved or removed while the run wrote to it. Put it back.{again}")
    elif number in _ODD and file is not None:
        answer = UserError(f"{file} cannot be used: {os.strerror(number)}. Mend that.{again}")
    elif number in _SHUT:
        answer = UserError(f"{place or 'The output'} cannot be written: {os.strerror(number)}. Mend that.{again}")
    if answer is not None:
        answer.shared = False
    return answer


def _number(error: Exception, run: Path | None) -> int:
    """The system's number of an error; 0 where it is none of the system's."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if (found := _NUMBER.search(str(error))) is not None:
        return int(found[1])
    if any(words in str(error) for words in _TORCH):
        return errno.ENOSPC if run is None or run.exists() else errno.ENOENT
    return 0
