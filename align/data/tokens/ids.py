"""Token ids of many texts at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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


@lru_cache
def _calls_backend(kind: Any) -> bool:
    """Whether a class of tokenizers hands texts to its backend as they are."""
    from transformers import PreTrainedTokenizerFast

    calls = ("__call__", "_encode_plus", "_batch_encode_plus")  # the last one in transformers 4
    return issubclass(kind, PreTrainedTokenizerFast) and all(
        getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in calls
    )
