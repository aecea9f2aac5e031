"""Prompts and answers to token ids, split and closed as training splits and closes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.data.rows.formats import recognise
from align.data.rows.questions import Text
from align.data.tokens.encode import STATUS, Encoder
from align.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    replies: Sequence[Text],
    *,
    system: str | None = None,
    where: str = "row",
) -> list[tuple[Ids, Ids]]:
    """Token ids of each prompt and of the reply behind it, end-of-text token included.

    Each pair is split by itself, where prompt and prompt + reply part, so that one reply never moves the start of
    another. ``where`` names the rows in messages. Raises ``UserError`` for a pair that has no reply or that the chat
    template refuses.
    """
    batch = {"prompt": list(prompts), "completion": list(replies)}
    out = _encode(tokenizer, batch, ("completion",), system, where)
    return list(zip(out["prompt_ids"], out["completion_ids"], strict=True))


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text], *, system: str | None = None, where: str = "row"
) -> list[Ids]:
    """Token ids of prompts to generate from; a conversation ends with the header of the answer to come."""
    return _encode(tokenizer, {"prompt": list(prompts)}, (), system, where)["prompt_ids"]


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, list[Text]],
    branches: tuple[str, ...],
    system: str | None,
    where: str,
) -> dict[str, list]:
    count = len(batch["prompt"])
    if not count:
        return {f"{name}_ids": [] for name in ("prompt", *branches)}
    form = recognise({name: values[0] for name, values in batch.items()}, list(batch), branches)
    columns = tuple(f"{name}_ids" for name in ("prompt", *branches))
    encode = Encoder(
        form, tokenizer, branches, None, "drop", system if form.conversational else None, columns
    )  # no limit on length: a cut answer would be another answer
    out = encode(batch, list(range(count)))
    for number, reason in enumerate(out[STATUS]):
        if reason:
            raise UserError(f"{where} {number} cannot be scored: {reason}. Mend or remove it.")
    return out
