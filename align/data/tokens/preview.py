"""What the model sees of one row: decoded tokens, with what is not trained on set apart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from align.objectives.base import MISMATCH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 240  # characters of one part; the middle of a longer one is left out
_OPEN, _CLOSE = "⟦", "⟧"


def preview(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, branches: Sequence[str], *, colour: bool = False
) -> list[str]:
    """Lines that show a prepared row. What is not trained on is dim with ``colour`` and in ⟦ ⟧ without."""
    how = "dim: not trained on" if colour else f"{_OPEN} {_CLOSE}: not trained on"
    lines = [f"What the model sees (row {row.get('row', 0)}; {how})"]
    width = max(len(name) for name in ("prompt", *branches))
    lines.append(f"  {'prompt':<{width}}  {_marked([(row['prompt_ids'], 0)], tokenizer, colour)}")
    for name in branches:
        ids = row[f"{name}_ids"]
        if ids is None:  # of labelled answers a row has one
            continue
        mask = [0] * len(ids) if name == MISMATCH else row.get(f"{name}_mask") or [1] * len(ids)
        lines.append(f"  {name:<{width}}  {_marked(_runs(ids, mask), tokenizer, colour)}")
    return lines


def _runs(ids: Sequence[int], mask: Sequence[int]) -> list[tuple[list[int], int]]:
    return [
        ([token for token, _ in group], flag)
        for flag, group in groupby(zip(ids, mask, strict=True), key=lambda pair: int(bool(pair[1])))
    ]


def _marked(runs: Sequence[tuple[Sequence[int], int]], tokenizer: PreTrainedTokenizerBase, colour: bool) -> str:
    parts = [(_shortened(_one_line(tokenizer.decode(list(ids)))), flag) for ids, flag in runs]
    if not colour:
        return "".join(text if flag else f"{_OPEN}{text}{_CLOSE}" for text, flag in parts)
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    text = Text.assemble(*((part, "green" if flag else "dim") for part, flag in parts))
    # No width: the terminal wraps by itself, and a wrapped line cannot be copied.
    Console(file=out, force_terminal=True, color_system="standard", soft_wrap=True).print(text, end="")
    return out.getvalue()


def _one_line(text: str) -> str:
    """The text with line breaks and control characters written out."""
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return "".join(named.get(char, char if char.isprintable() else f"\\x{ord(char):02x}") for char in text)


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = (_LONGEST - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"
