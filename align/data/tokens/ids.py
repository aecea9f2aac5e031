"""Token ids of many texts at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# `verbose`: our own limit on length comes later, and is counted
_IDS_ALONE = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}


def ids_of(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool = True
) -> list[list[int]]:
    """The ids that calling the tokenizer on ``texts`` gives.

    A fast tokenizer is called on the first text, which clears what other calls have set (cutting, padding), and then
    its backend on all: that takes half the time, since no offsets, masks and word numbers are made.
    """
    how = {"add_special_tokens": add_special_tokens}
    if not texts:
        return []
    if not _calls_backend(tokenizer.__class__):
        return tokenizer(list(texts), **how, **_IDS_ALONE)["input_ids"]
    tokenizer(list(texts[:1]), **how, **_IDS_ALONE)
    backend = tokenizer.backend_tokenizer
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), **how)]


def ids_of_parts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """``ids_of`` without special tokens to add, for texts that share parts, as conversations and their prompts do.

    A fast tokenizer cuts a text at its special tokens before it does anything else, and works on every piece alone. So
    a piece that comes in several texts is tokenised once; a third to a half of the time of pairs is saved.
    """
    marks = _marks(tokenizer, texts[0]) if texts and _calls_backend(tokenizer.__class__) else []
    if not marks:
        return ids_of(tokenizer, texts, add_special_tokens=False)
    # each piece with its mark in front: some tokenizers treat the very start of a text in another way
    start = re.compile(f"(?={'|'.join(map(re.escape, marks))})")
    pieces = [start.split(text) for text in texts]
    different = list(dict.fromkeys(chain.from_iterable(pieces)))
    ids = dict(zip(different, ids_of(tokenizer, different, add_special_tokens=False), strict=True))
    return [list(chain.from_iterable(map(ids.__getitem__, one))) for one in pieces]


def _marks(tokenizer: Any, text: str) -> list[str]:
    """The tokens in ``text`` at each of which, wherever it comes, this tokenizer cuts a text; it may have more."""
    backend = tokenizer.backend_tokenizer
    if tokenizer.split_special_tokens:
        return []
    # the backend looks for these in the text as it is, the first one and of those the longest
    found = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized]
    if any(token.single_word for token in found):  # whether it is one depends on what follows
        return []
    contents = tuple(token.content for token in found)
    firm = [token.content for token in found if not token.lstrip]  # others take the blanks before them along
    return [mark for mark in firm if mark in text and _stands_alone(mark, contents)]


@lru_cache(maxsize=256)
def _stands_alone(mark: str, others: tuple[str, ...]) -> bool:
    """Whether no token can begin before ``mark`` and reach into it, or begin with it and be longer."""
    return not any(
        (mark in other and mark != other) or any(other[1:].endswith(mark[:size]) for size in range(1, len(mark)))
        for other in others
    )


@lru_cache
def _calls_backend(kind: Any) -> bool:
    """Whether a class of tokenizers hands texts to its backend as they are."""
    from transformers import PreTrainedTokenizerFast

    calls = ("__call__", "_encode_plus", "_batch_encode_plus")  # the last one in transformers 4
    return issubclass(kind, PreTrainedTokenizerFast) and all(
        getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in calls
    )
