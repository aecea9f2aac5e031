"""Text of models, rows and recipes as a page shows it: nothing is hidden in it, and it ends."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 4000  # characters of one text in a page

# what turns the direction of the text behind it, and what no browser shows
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)


def shown(text: str, longest: int = LONGEST) -> str:
    """``text`` with hidden characters by their numbers, such as <U+202E>, and its end cut off with a count."""
    cut = len(text) - longest
    if cut > 0:
        text = f"{text[:longest]} ... (and {cut:,} more characters)"
    return visible(text)


def visible(text: str) -> str:
    """``text`` with hidden characters by their numbers."""
    return _HIDDEN.sub(lambda m: f"<U+{ord(m[0]):04X}>", text.replace("\r\n", "\n"))


def markdown(text: str) -> str:
    """``text`` on one line of Markdown, in which it begins no link, picture, code, table cell or HTML."""
    line = " ".join(visible(text).split())
    return re.sub(r"([\\`\[\]|])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;"))


def fenced(lines: Iterable[str]) -> list[str]:
    """Lines as a block of code of Markdown, which none of them ends."""
    shown_lines = [visible(line) for line in lines]
    longest = max((len(ticks) for line in shown_lines for ticks in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *shown_lines, fence]
