"""Cutting rows that are too long. Both branches of a row keep the same prompt, whatever is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from align.errors import UserError
from align.recipe.sections import Truncation

POLICIES: tuple[str, ...] = get_args(Truncation)

TOO_LONG = "longer than {limit} tokens"
PROMPT_TOO_LONG = "the prompt alone fills {limit} tokens"
NO_ROOM = "the answer leaves no room for the prompt within {limit} tokens"


@dataclass(frozen=True)
class Cut:
    """What is kept: the prompt as it is after the cut, and a slice of each branch."""

    prompt: list[int]
    spans: Mapping[str, slice]
    truncated: bool


def is_length_reason(reason: str) -> bool:
    """Whether ``fit`` gave this reason to drop a row."""
    return any(reason.startswith(text.partition("{")[0]) for text in (TOO_LONG, PROMPT_TOO_LONG, NO_ROOM))


def check_policy(truncation: str, max_length: int | None) -> None:
    """Raise ``UserError`` where a policy or limit cannot be meant."""
    if truncation not in POLICIES:
        raise UserError(f"data.truncation: {truncation!r} is not known; expected one of {', '.join(POLICIES)}.")
    if max_length is not None and max_length < 2:
        raise UserError(
            f"data.max_length: {max_length} leaves no room; expected at least 2 tokens, or null for no limit."
        )


def fit(
    prompt: list[int], lengths: Mapping[str, int], *, max_length: int | None, truncation: str, bos: int | None
) -> Cut | str:
    """Make prompt + each branch at most ``max_length`` tokens; returns the cut, or the reason to drop the row.

    - ``drop``: a row that is too long is dropped.
    - ``keep_start``: the end of the answers is cut; dropped where the prompt leaves no room.
    - ``keep_end``: the beginning is cut: of the prompt, and of an answer that is too long even so (then one prompt
      token stays). A BOS token at the start is cut like any other.
    - ``prompt_left``: only the prompt is cut, at its beginning, and a BOS token stays; dropped where no token of the
      prompt proper would.
    """
    whole = {name: slice(0, length) for name, length in lengths.items()}
    longest = max(lengths.values(), default=0)
    if max_length is None or len(prompt) + longest <= max_length:
        return Cut(prompt, whole, False)
    if truncation == "drop":
        return TOO_LONG.format(limit=max_length)
    if truncation == "keep_start":
        room = max_length - len(prompt)
        if room < 1:
            return (PROMPT_TOO_LONG if lengths else TOO_LONG).format(limit=max_length)
        return Cut(prompt, {name: slice(0, min(n, room)) for name, n in lengths.items()}, True)
    if truncation == "keep_end":
        kept = prompt[-max(1, max_length - longest) :]
        room = max_length - len(kept)
        return Cut(kept, {name: slice(max(0, n - room), n) for name, n in lengths.items()}, True)
    head = prompt[:1] if bos is not None and prompt[:1] == [bos] else []
    room = max_length - longest - len(head)
    if room < 1:
        return NO_ROOM.format(limit=max_length)
    return Cut(head + prompt[len(head) :][-room:], whole, True)
