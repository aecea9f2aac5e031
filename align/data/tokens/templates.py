"""Chat templates are rendered in a process of their own, which may take so long and so much memory.

A template is a program that somebody else wrote. transformers' sandbox keeps it away from Python and from files, but
knows no limit on loops, memory or output. So a forked process renders, under a limit on its memory, and its parent ends
it where a conversation takes too long. Limits: ``align.outside.limits``. Systems other than Linux cannot fork safely:
there the sandbox is all that there is.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils.chat_template_utils import render_jinja_template

from align.errors import UserError
from align.outside.limits import (
    MIB,
    RENDERED_CHARACTERS,
    TEMPLATE,
    TEMPLATE_MEAN_SECONDS,
    TEMPLATE_MEMORY,
    TEMPLATE_SECONDS,
)

_TOGETHER = 0.05  # seconds of rendering whose texts are sent together
_IDLE = 2.0  # seconds between two looks of a waiting process at whether its parent lives


class Text(NamedTuple):
    """A rendered conversation, and where in it the template marks the assistant's words, from and to."""

    text: str
    marked: Sequence[tuple[int, int]]


class Refusal(NamedTuple):
    """Why a template does not render a conversation, in its own words or those of the error that it met."""

    reason: str


def rendered(template: str, conversations: Sequence[Any], arguments: Mapping[str, Any]) -> list[Text | Refusal]:
    """Render conversations with transformers' ``render_jinja_template``, whose ``arguments`` they share.

    Raises:
        UserError: where one takes more time or memory, or gives more text, than ``align.outside.limits`` allows.
    """
    if len(template) > TEMPLATE:
        raise _beyond(f"has more than {TEMPLATE:,} characters")
    if sys.platform != "linux":
        return list(_render(template, conversations, arguments))
    with _LOCK:
        return _process().ask(template, conversations, arguments)


class _Process:
    """A forked process that renders, one conversation after the other."""

    def __init__(self) -> None:
        self._ours, theirs = Pipe()
        self.parent = os.getpid()
        self._spent, self._count = 0.0, 0
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads, none of which this child goes into
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if not self._pid:
            _serve(theirs)
        theirs.close()

    def ask(self, template: str, conversations: Sequence[Any], arguments: Mapping[str, Any]) -> list[Text | Refusal]:
        out: list[Text | Refusal] = []
        try:
            self._ours.send_bytes(pickle.dumps((template, conversations, arguments)))
            while len(out) < len(conversations):
                began = time.monotonic()
                if not self._ours.poll(TEMPLATE_SECONDS):
                    raise _beyond(f"works for more than {TEMPLATE_SECONDS:g} s on one conversation")
                answers = json.loads(self._ours.recv_bytes())  # what comes back is never unpickled
                self._spent += time.monotonic() - began
                self._count += len(answers)
                if self._spent > TEMPLATE_SECONDS + self._count * TEMPLATE_MEAN_SECONDS:
                    raise _beyond(f"works for {self._spent:.0f} s on {self._count:,} conversations")
                for kind, *found in answers:
                    if kind == "beyond":
                        raise _beyond(found[0])
                    out.append(Text(found[0], found[1]) if kind == "text" else Refusal(found[0]))
        except (EOFError, OSError):
            self.end()
            raise _beyond(f"needs more than {TEMPLATE_MEMORY // MIB} MiB of memory for one conversation") from None
        except BaseException:
            self.end()  # what it still has to say is nobody's answer
            raise
        return out

    def end(self) -> None:
        """End the process."""
        global _PROCESS
        _PROCESS = None
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._ours.close()


_LOCK = threading.Lock()
_PROCESS: _Process | None = None


def _process() -> _Process:
    """The one of this process; a forked copy of us makes its own."""
    global _PROCESS
    if _PROCESS is None or _PROCESS.parent != os.getpid():
        _PROCESS = _Process()
    return _PROCESS


def _beyond(what: str) -> UserError:
    return UserError(
        f"The chat template {what}, as none should: it is refused. Look into it before you use it, or set "
        "model.chat_template to a file with another."
    )


def _serve(requests: Connection) -> None:
    """Answer until the parent is gone, and leave the process."""
    try:
        parent = os.getppid()
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent's affair, which ends this process
            signal.signal(one, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):  # whoever reads what the parent prints waits for the last who might
            os.dup2(nothing, standard)
        os.closerange(3, requests.fileno())  # locks and sockets of the parent
        os.closerange(requests.fileno() + 1, 1 << 16)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + TEMPLATE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        while True:
            while not requests.poll(_IDLE):
                if os.getppid() != parent:
                    os._exit(0)
            template, conversations, arguments = pickle.loads(requests.recv_bytes())  # of our own parent
            answers, since = [], time.monotonic()
            for number, text in enumerate(_render(template, conversations, arguments), start=1):
                answers.append(["text" if isinstance(text, Text) else "refusal", *text])
                if number == len(conversations) or time.monotonic() - since > _TOGETHER:
                    requests.send_bytes(json.dumps(answers).encode())
                    answers, since = [], time.monotonic()
    except _Beyond as error:
        requests.send_bytes(json.dumps([["beyond", str(error)]]).encode())
        os._exit(1)
    finally:
        os._exit(1)


class _Beyond(Exception):
    """A template goes beyond a limit that is seen from within."""


def _render(template: str, conversations: Sequence[Any], arguments: Mapping[str, Any]) -> Iterator[Text | Refusal]:
    for conversation in conversations:
        try:
            texts, marked = render_jinja_template([conversation], chat_template=template, **arguments)
        except MemoryError:
            raise _Beyond(f"needs more than {TEMPLATE_MEMORY // MIB} MiB of memory for one conversation") from None
        except Exception as error:  # of the template's own, or over a value that it did not expect
            yield Refusal(" ".join(str(error)[:1000].split()) or type(error).__name__)
            continue
        if len(texts[0]) > RENDERED_CHARACTERS:
            raise _Beyond(f"makes more than {RENDERED_CHARACTERS:,} characters of one conversation")
        yield Text(texts[0], marked[0] if marked else [])
