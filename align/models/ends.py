"""Which tokens end a text, for sampling, evaluation and the generation config of what is saved."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.rows.sources import quiet_hub
from align.data.tokens.endings import count_ends, marks, turn_end
from align.data.tokens.preparation import plural
from align.engine.scoring import causal_model
from align.errors import UserError
from align.models.load import first_line
from align.runs.models import located

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.recipe.sections import Model


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a text: the tokenizer's EOS, those that the model names, and the template's end of turn."""
    ends = {*named_ends(model.generation_config), tokenizer.eos_token_id, turn_end(tokenizer)}
    return sorted(token for token in ends if token is not None)


def named_ends(config: Any) -> set[int]:
    """The tokens that a generation config, or None, names as ends."""
    own = getattr(config, "eos_token_id", None)
    return {int(token) for token in (own if isinstance(own, list) else [own]) if token is not None}


def checkpoint_ends(section: Model, base: Path | None) -> set[int]:
    """The tokens that the model of a recipe names as ends, by its files alone; none where these say nothing."""
    from transformers import AutoConfig, GenerationConfig

    name = located(section.id, base)
    for kind in (GenerationConfig, AutoConfig):
        try:
            with quiet_hub():
                return named_ends(kind.from_pretrained(name, revision=section.revision))
        except Exception:  # there is none, or none that can be read, which is said where the model is looked at
            continue
    return set()


def mend_generation_config(config: Any) -> dict[str, Any]:
    """Unset what transformers calls without effect and refuses to save; returns what was unset, by name.

    Raises:
        UserError: for settings that contradict each other otherwise.
    """
    left: dict[str, Any] = {}
    while True:
        try:
            config.validate(strict=True)
            return left
        except ValueError as error:
            names = [name for name in re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE) if name not in left]
            if not names:
                raise UserError(
                    f"The model's generation config cannot be saved ({first_line(error)}). Mend generation_config.json."
                ) from error
            for name in names:
                left[name] = getattr(config, name)
                setattr(config, name, None)


def unnamed_ends(found: Counter[int], tokenizer: PreTrainedTokenizerBase, named: Iterable[int]) -> dict[int, str]:
    """Ends of answers that stop nothing: neither EOS nor among ``named``; each with a sentence for people."""
    known = {*named, tokenizer.eos_token_id}
    text = tokenizer.convert_ids_to_tokens
    stops = ", ".join(sorted(str(text(token)) for token in known if token is not None)) or "nothing"
    return {
        token: f"{plural(count, 'answer')} end{'s' if count == 1 else ''} in {text(token)}, but generation stops at "
        f"{stops} alone"
        for token, count in found.most_common()
        if token in marks(tokenizer) - known
    }


def name_pad(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Let tokenizer and model name a pad token that ends no answer, so that plain transformers scores as align does.

    A classifier of transformers reads the last token that is no pad token: where EOS pads, that before EOS. Returns
    sentences about it.
    """
    config = causal_model(model).config.get_text_config()
    ends = {tokenizer.eos_token_id, turn_end(tokenizer)}
    before, sentences = tokenizer.pad_token, []
    if tokenizer.pad_token_id in ends:
        named = [token for token in (tokenizer.unk_token, tokenizer.bos_token) if token is not None]
        usable = [token for token in named if tokenizer.convert_tokens_to_ids(token) not in ends]
        if usable:
            tokenizer.pad_token = usable[0]
            sentences.append(
                f"{usable[0]} becomes the pad token of what is saved, since {before} ends answers: plain transformers "
                "would read the score before it"
            )
        else:
            sentences.append(
                f"warning: {before} ends answers and pads, and the tokenizer has no other token to pad with: align "
                "reads scores at the end of an answer, but plain transformers will read them one token before it. Give "
                "the tokenizer a pad token of its own."
            )
    config.pad_token_id = tokenizer.pad_token_id
    return sentences


def name_ends(model: Any, tokenizer: PreTrainedTokenizerBase, tables: Iterable[Any]) -> list[str]:
    """Let the model's generation config name the tokens that answers end in, so that what is saved stops there.

    ``tables`` are the prepared rows. Where they have no answers (prompts to sample from) or are streams, it is the chat
    template's end of turn. Returns sentences about what was added.
    """
    config = causal_model(model).generation_config
    if config is None:
        return []
    found: Counter[int] = Counter()
    for rows in tables:
        if hasattr(rows, "__len__"):
            found += count_ends(rows, tokenizer)
    named = named_ends(config)
    sentences = unnamed_ends(found, tokenizer, named)
    added = set(sentences)
    if not found and (end := turn_end(tokenizer)) is not None:
        added = {end} - {*named, tokenizer.eos_token_id}
    if added:
        config.eos_token_id = sorted(
            {*named, *added, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
        )
    tokens = ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(added))
    note = f"{tokens} becomes an end of text in the generation config of what is saved, and ends samples here"
    return [f"warning: {sentence}: {note}" for sentence in sentences.values()] or ([note] if added else [])
