"""Calls of the Hub are made again where that may help, and whoever waits is told. Imports no torch."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from align.errors import UserError
from align.export.refusals import HTTP, may_pass, refusal, seen, status_of
from align.runs.retry import retry_after

Say = Callable[[str], Any]
T = TypeVar("T")

TRIES = 6  # of one step; huggingface_hub tries each part of a large file as often within
_LONGEST = 60.0  # seconds of a pause of our own
_PATIENCE = 600.0  # seconds that the Hub may ask us to wait before we give up instead
# seconds to connect, and without a byte until a connection counts as broken: a large commit takes a while
_TIMEOUT = HTTP.Timeout(300.0, connect=30.0)
# what huggingface_hub raises where the Hub refuses, the network fails, or an answer is not what it should be
_FAILURES = (HfHubHTTPError, HTTP.HTTPError, OfflineModeIsEnabled, RuntimeError, ValueError, KeyError)


def tried(
    call: Callable[[], T],
    repo: str,
    user: str | None,
    say: Say,
    *,
    pause: float = 1.0,
    also: tuple[int, ...] = (),
) -> T:
    """What ``call`` gives, after as many tries as it takes.

    Args:
        repo, user: for the sentence where the Hub refuses.
        pause: seconds before the second try; doubled for each one after it, and as long as the Hub asks.
        also: statuses that may pass too, of a call that looks anew each time.

    Raises:
        UserError: where no further try would help, or none of ``TRIES`` did.
    """
    began = time.monotonic()
    for attempt in range(TRIES):
        get_session().timeout = _TIMEOUT  # the library has none, so that a silent connection would be waited for
        try:
            with _waits_said(say):
                return call()
        except _FAILURES as error:
            cause: BaseException = error.__cause__ or error if isinstance(error, RuntimeError) else error
        if not may_pass(cause) and status_of(cause) not in also:
            raise UserError(refusal(cause, repo, user)) from None
        asked = retry_after(cause.response.headers) if isinstance(cause, HfHubHTTPError) else None
        if attempt == TRIES - 1 or (asked or 0.0) > _PATIENCE:
            break
        wait = max(min(pause * 2**attempt, _LONGEST), asked or 0.0)
        say(f"{seen(cause)}: trying again in {wait:.3g} s")
        time.sleep(wait)
    if status_of(cause) in also:
        raise UserError(refusal(cause, repo, user)) from None
    later = f"it asks to be called again in {asked:.0f} s" if (asked or 0.0) > _PATIENCE else "try again later"
    raise UserError(
        f"{repo}: {seen(cause)}, after {attempt + 1} tries in {time.monotonic() - began:.0f} s: {later}. What has been "
        "uploaded stays there."
    ) from None


@contextmanager
def _waits_said(say: Say) -> Iterator[None]:
    """Say what huggingface_hub waits for within a call, in place of its own lines: they show addresses with keys."""
    logger, found = logging.getLogger("huggingface_hub.utils._http"), _Waits(say)
    logger.addFilter(found)
    try:
        yield
    finally:
        logger.removeFilter(found)


@contextmanager
def bars_on_a_terminal() -> Iterator[None]:
    """Let huggingface_hub draw its bars on a terminal alone: elsewhere they are lines upon lines."""
    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()


class _Waits(logging.Filter):
    """Lets none of the lines about tries through, and says each wait."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say, self._seen = say, "the connection to the Hub broke"

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if wait := re.search(r"(?:Waiting|Retrying in) ([\d.]+) ?s", text):
            self._say(f"{self._seen}: trying again in {float(wait[1]):.3g} s")
        elif status := re.search(r"HTTP Error (\d{3})", text):
            self._seen = f"the Hub answers with status {status[1]}"
        elif "thrown while requesting" in text:
            self._seen = "the connection to the Hub broke"
        return False
