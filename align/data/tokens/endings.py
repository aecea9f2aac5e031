"""Which token ends an answer: as the chat template closes a turn, and as prepared rows really end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from align.data.rows.cache import let_go
from align.data.rows.values import BadRow
from align.data.tokens.chat import Request, render
from align.data.tokens.samples import special_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_BLANKS = 8  # tokens at the end that may be blanks: they are few, such as a template's line break
_ANSWER = "Yes"
_TURNS: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template closes an answer with; None where there is no template or no such token."""
    ids = _rendered(tokenizer)
    last = _last(ids, tokenizer) if ids else None
    return last if last in marks(tokenizer) else None


def text_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What a text is given at its end: EOS, nothing where the tokenizer closes texts itself; None where it has none."""
    plain, whole = (tokenizer(_ANSWER, add_special_tokens=flag).input_ids for flag in (False, True))
    return tokenizer.eos_token if plain[-1:] == whole[-1:] else ""


def open_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The text behind an answer where the chat template closes it with no token of its own; else None."""
    ids = _rendered(tokenizer)
    if not ids or _last(ids, tokenizer) in marks(tokenizer):
        return None
    return tokenizer.decode(ids).rpartition(_ANSWER)[2]


def marks(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that never come about from ordinary text, and so can end a text: special ones and added ones."""
    return set(special_tokens(tokenizer).values()) | set(tokenizer.added_tokens_decoder)


def count_ends(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Counter[int]:
    """Answers of prepared rows by the token that they end in, blanks behind it left aside."""
    found: Counter[int] = Counter()
    answers = [name for name in rows.column_names if name.endswith("_ids") and not name.endswith("prompt_ids")]
    blank = _Blank(tokenizer)
    for chunk in rows.select_columns(answers).with_format("arrow").iter(4096) if answers else ():
        for name in answers:
            column = chunk[name]
            stops = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy())
            starts = np.concatenate(([0], stops[:-1]))
            ids = pc.list_flatten(column).to_numpy()
            for _ in range(_BLANKS):
                starts, stops = starts[starts < stops], stops[starts < stops]
                last = ids[stops - 1]
                empty = blank(last)
                found.update(last[~empty].tolist())
                starts, stops = starts[empty], stops[empty] - 1
        let_go()
    return found


class _Blank:
    """Which of many tokens are blanks alone; every token is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.known = tokenizer, dict[int, bool]()

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        tokens, places = np.unique(ids, return_inverse=True)
        for token in tokens.tolist():
            if token not in self.known:
                self.known[token] = not self.tokenizer.decode([token]).strip()
        return np.array([self.known[token] for token in tokens.tolist()], dtype=bool)[places]


def _rendered(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A short conversation as ids; none without a template, or where it refuses the conversation."""
    if not tokenizer.chat_template:
        return []
    rendered = render(tokenizer, [Request(_TURNS)])[0]
    return [] if isinstance(rendered, BadRow) else rendered.ids


def _last(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The last token that is more than blanks."""
    return next((token for token in reversed(ids) if tokenizer.decode([token]).strip()), None)
