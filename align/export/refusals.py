"""What the Hub's refusals mean for who pushes, a sentence each, with the cure. Imports no torch."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

# the HTTP library below huggingface_hub, whose errors come through: httpx2, or httpx in other versions
HTTP: Any = import_module(
    next(one.__module__.partition(".")[0] for one in HfHubHTTPError.__mro__ if one.__module__.startswith("httpx"))
)
AGAIN = (408, 425, 429)  # and all of 5xx: what may pass
_SHOWN = 300  # characters of the Hub's words


def status_of(error: BaseException) -> int | None:
    """The status that an error of the Hub's client stands for; None for one without, such as a broken connection."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def may_pass(error: BaseException) -> bool:
    """Whether the same may be answered to the next try."""
    status = status_of(error)
    if status is not None:
        return status in AGAIN or status >= 500
    return isinstance(error, HTTP.TransportError) and not isinstance(error, HTTP.UnsupportedProtocol)


def seen(error: BaseException) -> str:
    """What was seen, as part of a sentence: a status, or a connection that broke."""
    status = status_of(error)
    if status is not None:
        return f"the Hub answers with status {status}"
    timed = isinstance(error, HTTP.TimeoutException)
    return "the Hub does not answer in time" if timed else "the connection to the Hub broke"


def refusal(error: BaseException, repo: str, user: str | None) -> str:
    """The sentence about an error that no further try would mend.

    Args:
        repo: what is pushed to, with its namespace.
        user: whose login it is; None where that is not known.
    """
    status, words = status_of(error), _words(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "The network is switched off (HF_HUB_OFFLINE): unset it to push."
    if status is None:
        return f"{repo}: {words}."
    who = user or "This login"
    if status == 401:
        return (
            f"The Hub does not know the token of {_source()} (status 401). Make one that may write at "
            f"{constants.ENDPOINT}/settings/tokens."
        )
    if status == 402:
        return f"{repo}: the Hub asks for a payment (status 402: {words}): see {constants.ENDPOINT}/settings/billing."
    if status == 403:
        return (
            f"{who} may not do this to {repo} (status 403: {words}). Use a token that may write to "
            f"{repo.partition('/')[0]}, or push to a repository of your own."
        )
    if status == 404:
        return (
            f"{repo}: there is no such repository or revision, or {who} may not see it (status 404). Check the names, "
            "and that the token may read it."
        )
    if status in (409, 412):
        return f"{repo} was changed by someone else at the same time (status {status}: {words}): push again."
    return f"{repo}: the Hub refuses (status {status}: {words})."


def _source() -> str:
    """Where the login comes from."""
    return "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the saved login (hf auth login)"


def _words(error: BaseException) -> str:
    """The Hub's own words, fit to be shown: one line, no control characters, not too long."""
    said = (getattr(error, "server_message", None) or "") if isinstance(error, HfHubHTTPError) else str(error)
    line = " ".join("".join(c if c.isprintable() else " " for c in said).split()).rstrip(".")
    return (line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…") or "it says nothing more"
