"""Answers of a server on disk: each is there whole or not at all, under a digest of what was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from align.errors import UserError
from align.runs.files import write_atomically


def question_key(url: str, path: str, body: Mapping[str, Any]) -> str:
    """Under which the answer to POST of ``body`` is kept."""
    return hashlib.sha256(json.dumps([url, path, body], sort_keys=True).encode()).hexdigest()


class Answers:
    """A folder of answers, shared by any number of processes; None keeps none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def read(self, key: str) -> Any:
        """An answer on disk; None where there is none, or one that cannot be read, which is asked for again."""
        if self.folder is None:
            return None
        try:
            return json.loads(self._file(key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None

    def keep(self, key: str, answer: Any) -> None:
        """Write an answer. Raises ``UserError`` where that fails."""
        if self.folder is None:
            return
        try:
            write_atomically(self._file(key), json.dumps(answer))
        except OSError as error:
            raise UserError(f"An answer cannot be written to {self.folder} ({error.strerror}).") from error

    def require_writable(self) -> None:
        """Answers may cost money, so nothing is asked before there is a place for them. Raises ``UserError``."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise UserError(f"{self.folder}, where answers go, cannot be written to ({error.strerror}).") from error

    def kept(self) -> str:
        """What to say of them where a call fails; nothing where there are none."""
        if self.folder is None or not any(self.folder.glob("??/*.json")):
            return ""
        return f" The answers so far are kept in {self.folder}, and none of them is asked for again."

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"
