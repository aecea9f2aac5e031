"""Plain texts as rows: long ones cut into several, and openings that stand for a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from align.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

OPENING = 200  # tokens, as in the prompts of MUSE's verbatim memorization (arXiv 2407.06460)


def split(prepared: Dataset, branch: str, max_length: int, bos: int | None) -> Dataset:
    """Rows of at most ``max_length`` tokens: longer ones are cut into consecutive pieces, none of which is lost.

    A piece begins as its text does, with BOS where the tokenizer puts one, which is then its prompt; else its first
    token is its prompt and no target, as at the start of the text. Only rows with a prompt of one token can be cut: of
    plain text, whose every token is a target.
    """
    long = [i for i, row in enumerate(prepared) if len(row["prompt_ids"]) + len(row[f"{branch}_ids"]) > max_length]
    if not long:
        return prepared
    bad = next(
        (i for i in long if len(prepared[i]["prompt_ids"]) != 1 or f"{branch}_mask" in prepared.column_names), None
    )
    if bad is not None:
        raise UserError(
            f"Row {prepared[bad]['row']} is longer than {max_length} tokens and no plain text, so it cannot be split; "
            "set data.truncation to drop or keep_start."
        )

    def cut(batch: dict[str, list]) -> dict[str, list]:
        out: dict[str, list] = {name: [] for name in batch}
        for index, (prompt, ids) in enumerate(zip(batch["prompt_ids"], batch[f"{branch}_ids"], strict=True)):
            for first, rest in pieces(prompt, ids, max_length, bos):
                for name in batch:
                    out[name].append(
                        first if name == "prompt_ids" else rest if name == f"{branch}_ids" else batch[name][index]
                    )
        return out

    return prepared.map(cut, batched=True, batch_size=64, features=prepared.features, desc="Splitting")


def pieces(prompt: Sequence[int], ids: Sequence[int], limit: int, bos: int | None) -> list[tuple[list[int], list[int]]]:
    """Prompt and targets of every piece of a text; only a last single token that nothing could predict is left out."""
    if len(prompt) + len(ids) <= limit:
        return [(list(prompt), list(ids))]
    out: list[tuple[list[int], list[int]]] = []
    text: list[Any] = list(ids) if list(prompt) == [bos] else [*prompt, *ids]
    room = limit - 1 if list(prompt) == [bos] else limit
    for start in range(0, len(text), room):
        piece = text[start : start + room]
        if list(prompt) == [bos]:
            out.append((list(prompt), piece))
        elif len(piece) > 1:
            out.append((piece[:1], piece[1:]))
    return out


def continued(
    prepared: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    alternates: Sequence[Sequence[str]],
    max_length: int | None,
    say: Callable[[str], Any],
) -> Dataset:
    """Prepared plain texts (``prompt_ids``, ``forget_ids``) with other continuations in ``alternate_ids``.

    A text answers no question, so its first ``OPENING`` tokens, at most a half, become the prompt and are no targets;
    the rest of the text is what is forgotten. Row i comes once for each text of ``alternates[i]``. Raises ``UserError``
    where an alternate leaves no room for an opening.
    """
    known = sorted({text for texts in alternates for text in texts})
    encoded = tokenizer([f" {text}" for text in known], add_special_tokens=False)["input_ids"]
    other = {text: [*ids, tokenizer.eos_token_id] for text, ids in zip(known, encoded, strict=True)}
    longest = max(map(len, other.values()))
    room = OPENING if max_length is None else min(OPENING, max_length - longest)
    if room < 1:
        raise UserError(f"data.max_length: {max_length} tokens do not hold an alternate answer of {longest}.")
    say(f"a text has no question: its first {room} tokens (of a short one a half) stand for it and are not forgotten")

    def cut(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        out: dict[str, list] = {name: [] for name in (*batch, "alternate_ids")}
        for place, index in enumerate(indices):
            tokens = [*batch["prompt_ids"][place], *batch["forget_ids"][place]]
            opening = min(room, len(tokens) // 2)
            own = {"prompt_ids": tokens[:opening], "forget_ids": tokens[opening:]}
            for text in alternates[index]:
                row = {name: values[place] for name, values in batch.items()} | own | {"alternate_ids": other[text]}
                for name, value in row.items():
                    out[name].append(value)
        return out

    features = prepared.features.copy()
    features["alternate_ids"] = features["forget_ids"]
    return prepared.map(cut, batched=True, with_indices=True, features=features, desc="Opening")
