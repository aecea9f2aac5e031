"""Text of models, rows and recipes as a page shows it: nothing is hidden in it, and it ends."""

from __future__ import annotations

import re

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
    return _HIDDEN.sub(lambda m: f"<U+{ord(m[0]):04X}>", text.replace("\r\n", "\n"))
