"""How many calls were made of those that are allowed, over all processes of a run and over its interruptions."""

from __future__ import annotations

import os
from pathlib import Path

from align.errors import UserError

CALLS = "judge-calls"  # beside what the calls are made for


class Calls:
    """A count that may not pass a limit.

    It is kept as a file that grows by one byte with each call: appending is one step for all who do it at once, and the
    place where a byte came to lie tells its writer which call it is. What a kill leaves is a count that is still right.

    Args:
        limit: most calls; None for no limit.
        file: where the count is kept, for any number of processes of a machine or of a shared file system that appends
            as POSIX says (NFS does not); None counts this process alone.
    """

    def __init__(self, limit: int | None, file: Path | None = None) -> None:
        self.limit, self.file = limit, file
        self._alone = 0

    @property
    def made(self) -> int:
        """Calls so far; those that were refused are not among them."""
        if self.file is None:
            return self._alone
        try:
            size = self.file.stat().st_size
        except OSError:
            size = 0
        return size if self.limit is None else min(size, self.limit)

    def claim(self) -> bool:
        """Whether one more call may be made, which then counts. Raises ``UserError`` where it cannot be counted."""
        if self.file is None:
            if self.limit is not None and self._alone >= self.limit:
                return False
            self._alone += 1
            return True
        if self.limit is not None and self.made >= self.limit:
            return False  # refused claims would count where the limit is raised later
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, b".")
                mine = os.lseek(descriptor, 0, os.SEEK_CUR)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(
                f"{self.file}: a call cannot be counted there ({error.strerror}), so none is made."
            ) from error
        return self.limit is None or mine <= self.limit
