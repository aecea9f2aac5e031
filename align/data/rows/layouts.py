"""Texts in another layout, with the same words. Text with code, or with marks of a layout, stays as it is."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_MARKED = re.compile(r"(?m)```|~~~|^(?: {4}|\t)|^\s*(?:[-*+#]|\d+\.)\s|\*\*")


def bold(text: str) -> str:
    """The first sentence in bold."""
    if _marked(text):
        return text
    first = _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
    return text.replace(first, f"**{first}**", 1)


def heading(text: str) -> str:
    """A heading that says nothing above the text."""
    return text if _marked(text) else f"## Answer\n\n{text.strip()}"


def bullets(text: str) -> str:
    """Every sentence as an item of a list."""
    return text if _marked(text) else "\n".join(f"- {part}" for part in _SENTENCE_END.split(text.strip()))


def blank_lines(text: str) -> str:
    """Every sentence as a paragraph."""
    return text if _marked(text) else "\n\n".join(_SENTENCE_END.split(text.strip()))


def _marked(text: str) -> bool:
    """Whether there is nothing to lay out: no words, code, or marks of a layout already."""
    return not text.strip() or _MARKED.search(text) is not None
