"""What people read while a command works: lines that fit their terminal, and how far long work has come."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from types import TracebackType
from typing import Any, TextIO

from align.report.page.untrusted import visible
from align.report.progress import clock

FIRST_AFTER = 2.0  # seconds of work before a terminal shows how far it is: short work shows nothing
AGAIN_AFTER = 10.0  # seconds between lines where there is no terminal; the first comes as late
_REWRITTEN_AFTER = 0.2  # seconds between two states of the line on a terminal

# what stands before the text of a line in columns: one or two cells, each with at least two blanks behind it
_CELLS = re.compile(r"\s*(?:\S+(?: \S+)*\s{2,}){1,2}")


_COLOUR = re.compile(r"(\x1b\[[\d;]*m)")  # of our own tables, and harmless in any text


def echo(text: object = "", *, file: TextIO | None = None, **options: Any) -> None:
    """``print``; on a terminal, lines that are too wide for it go on below their text.

    What would move its cursor, change its title or turn the direction of text is shown by number: rows, file names and
    servers' words are in these lines, too.
    """
    out = sys.stdout if file is None else file
    text = "".join(part if _COLOUR.fullmatch(part) else visible(part) for part in _COLOUR.split(str(text)))
    if out.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(fitted(line, width) for line in str(text).split("\n"))
    print(text, file=out, **options)


def aside(text: str) -> None:
    """Say something beside what a command prints: on standard error of the main process."""
    if int(os.environ.get("RANK", "0")) == 0:
        echo(text, file=sys.stderr, flush=True)


def fitted(line: str, width: int) -> str:
    """A line broken between words, so that no part is wider than ``width``; a word that is wider stays whole."""
    if len(line) <= width:
        return line
    cells = _CELLS.match(line)
    indent = cells.end() if cells and cells.end() <= width // 2 else len(line) - len(line.lstrip()) + 2
    parts = textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        expand_tabs=False,
    )
    return "\n".join(parts) or line


class Work:
    """Says how far a long piece of work is and how long it will still take, on standard error of the main process.

    On a terminal one line is rewritten, and gone at the end. Elsewhere a line comes every ten seconds. Work that is
    done sooner says nothing, nor does work inside of other work, which says itself how far it is. Use it as a context
    manager and call ``add`` as pieces get done.

    Args:
        what: what is done to the pieces, such as ``answers scored``.
        total: how many pieces there are. Of several processes each counts its own share.
    """

    _under_way = 0  # works that have begun and not ended

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._out = sys.stderr
        self._main = int(os.environ.get("RANK", "0")) == 0
        self._terminal = self._out.isatty()
        self._began = time.monotonic()
        self._next = self._began + (FIRST_AFTER if self._terminal else AGAIN_AFTER)
        self._shown = 0  # characters on the terminal's line

    def __enter__(self) -> Work:
        self._main = self._main and not Work._under_way
        Work._under_way += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        Work._under_way -= 1
        self._rewrite("")

    def add(self, count: int = 1) -> None:
        """Count pieces that are done."""
        self.done += count
        now = time.monotonic()
        if not self._main or now < self._next or self.done >= self.total:
            return
        self._next = now + (_REWRITTEN_AFTER if self._terminal else AGAIN_AFTER)
        if self._terminal:
            self._rewrite(self.line(now))
        else:
            print(self.line(now), file=self._out, flush=True)

    def line(self, now: float) -> str:
        """How far it is at a time of ``time.monotonic()``."""
        left = (now - self._began) / self.done * (self.total - self.done)
        return f"{self.what}: {self.done:,} of {self.total:,}, {clock(left)} left"

    def _rewrite(self, text: str) -> None:
        """Put a text in place of the last one; the next line of anyone begins where it begins."""
        if not text and not self._shown:
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        self._out.write(f"\r{text.ljust(self._shown)}\r")
        self._out.flush()
        self._shown = len(text)
