"""What prepared rows depend on beside the raw ones, as the name under which they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align.data.rows.cache import WORTH, key_of, table_digest
from align.data.tokens.arguments import rendering

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def preparation_key(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, branches: Sequence[str], settings: Mapping[str, Any]
) -> str | None:
    """The name of the prepared rows: by raw rows, tokenizer, template, its arguments, branches and settings.

    None where they are not kept: where there are few, or the tokenizer is not one that can say all it consists of.
    """
    rows, size = table_digest(dataset)
    if size < WORTH:
        return None
    identity = tokenizer_identity(tokenizer)
    return None if identity is None else key_of("prepared", rows, identity, list(branches), dict(settings))


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[Any] | None:
    """Everything that decides which ids a text or a conversation becomes, as plain values; None for a slow tokenizer.

    A date counts as far as the template asks for it: as the texts that the template is given.
    """
    if not tokenizer.is_fast:
        return None
    # in front of the tokens stand cutting and padding, as the last call has set them
    backend = tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')[2]
    kind = type(tokenizer)
    named: tuple[list | None, ...] = (None, [])  # a tokenizer may have a template of its own for rows with tools
    return [
        f"{kind.__module__}.{kind.__qualname__}",
        hashlib.sha256(backend.encode()).hexdigest(),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        {number: repr(token) for number, token in sorted(tokenizer.added_tokens_decoder.items())},
        [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        [getattr(tokenizer, name, None) for name in ("split_special_tokens", "clean_up_tokenization_spaces")],
        tokenizer.chat_template,
        [_given(tokenizer, tools) for tools in named],
    ]


def _given(tokenizer: PreTrainedTokenizerBase, tools: list | None) -> Any:
    """The chat template, with the date written into it, and its arguments."""
    if not tokenizer.chat_template:
        return None
    try:
        return {"chat_template": tokenizer.get_chat_template(tools=tools), **rendering(tokenizer, tools, {})}
    except ValueError as error:  # no template of that sort, or no date: said of the rows that it concerns
        return str(error)
