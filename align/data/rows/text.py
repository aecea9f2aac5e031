"""Finding the prompt that two answers share: in plain strings, in HH-RLHF transcripts and in lists of messages."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from align.data.rows.values import rendered_turns

HH_HUMAN = "\n\nHuman:"
HH_ASSISTANT = "\n\nAssistant:"

# Scripts written without spaces between words: any character there is a word boundary.
_NO_SPACES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def split_shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and both answers of two strings that begin alike. The cut is never inside a word or a character.

    A single space at the cut goes to the answers, since tokenizers join it to the word that follows. Neither answer
    comes out empty unless its string is.
    """
    cut = _shared(chosen, rejected)
    cut = min(cut, len(chosen) - 1, len(rejected) - 1)
    while cut > 0 and not (_is_boundary(chosen, cut) and _is_boundary(rejected, cut)):
        cut -= 1
    cut = max(cut, 0)
    if cut and chosen[cut - 1] == " ":
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _shared(left: str, right: str) -> int:
    """How many characters two strings share at their start."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    return next(index for index in range(most) if left[index] != right[index])


def _is_boundary(text: str, cut: int) -> bool:
    if not 0 < cut < len(text):
        return True
    before, after = text[cut - 1], text[cut]
    if unicodedata.category(after).startswith("M") or after == "\u200d" or before == "\u200d":
        return False
    return not (_is_word(before) and _is_word(after))


def _is_word(char: str) -> bool:
    if any(low <= ord(char) <= high for low, high in _NO_SPACES):
        return False
    return char.isalnum() or char in "_'\u2019" or unicodedata.category(char).startswith("M")


def split_hh(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Prompt and both answers of two HH-RLHF transcripts; None where they share no prompt.

    The prompt ends with the last ``Assistant:`` that both transcripts share.
    """
    at = chosen.rfind(HH_ASSISTANT, 0, _shared(chosen, rejected))
    if at < 0:
        return None
    cut = at + len(HH_ASSISTANT)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def common_messages(left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]) -> int:
    """How many messages two conversations share at their start, leaving at least one to each.

    Keys that no template renders may differ.
    """
    left, right = rendered_turns(left), rendered_turns(right)
    most = min(len(left), len(right)) - 1
    return next((index for index in range(most) if left[index] != right[index]), max(most, 0))
