"""One completion of a prompt, and what a prompt is to a sampler and to a judge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Prompt = str | list[dict[str, str]]  # a text, or the messages of a conversation that ends with the user's
Finish = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class Sample:
    """A completion.

    Attributes:
        index: which of the prompt's samples, from 0.
        ids: sampled tokens, at least one; with ``end`` the end-of-text token is among them, with ``stop`` one was added
            where the text stops, so that stopping is trained.
        text: decoded without special tokens, up to where a stop text began.
        finish: ``end`` of text, a ``stop`` text, or the ``length`` limit, which leaves it truncated.
    """

    index: int
    ids: tuple[int, ...]
    text: str
    finish: Finish

    @property
    def truncated(self) -> bool:
        """Whether the limit cut it off."""
        return self.finish == "length"


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Every special token of a tokenizer, by its text: those that have a name (EOS and the like) and all others.

    Decoding leaves all of them out of a text, so none is ever seen as a text that ends one.
    """
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return named | {token.content: int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def prompt_key(ids: Sequence[int], row: int) -> int:
    """What draws for a prompt are keyed by: 64 bits of its token ids and its row number, wherever it is computed."""
    text = f"{row}:" + ",".join(map(str, ids))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
