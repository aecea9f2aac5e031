"""Conversations to token ids through a chat template, and which tokens of an answer of several turns are targets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jinja2

from align.data.rows.formats import BadRow
from align.data.tokens.arguments import rendering
from align.data.tokens.ids import ids_of_parts
from align.data.tokens.templates import Text, rendered
from align.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Request:
    """One conversation to render; ``prompt`` adds the header of the coming answer.

    ``kwargs`` are template arguments of its own, which win over the tokenizer's.
    """

    messages: list[Message]
    prompt: bool = False
    mask: bool = False
    tools: list | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text and as token ids; ``mask`` marks the assistant's tokens where the template does."""

    ids: list[int]
    text: str
    mask: list[int] | None = None


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``UserError`` where a tokenizer has no chat template to render conversations with."""
    if tokenizer.chat_template:
        return
    raise UserError(
        f"The rows are conversations, but the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat "
        "template. Set model.chat_template to a Jinja file, take an instruction-tuned model, or give prompt and "
        "answers as plain text."
    )


def has_generation_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template marks the assistant's tokens with ``{% generation %}``."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return bool(_GENERATION.search(template or ""))


def render(tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request]) -> list[Rendered | BadRow]:
    """Render and tokenise conversations, many at a time. One that the template refuses gives a ``BadRow``.

    Raises:
        UserError: where the template goes beyond what ``align.outside.limits`` allows.
    """
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        key = f"{request.prompt} {request.mask}"
        if request.tools or request.kwargs:
            key += json.dumps([request.tools, request.kwargs], default=repr)  # a template may print keys in their order
        groups.setdefault(key, []).append(index)
    out: list[Rendered | BadRow] = [BadRow("not rendered")] * len(requests)
    for indices in groups.values():
        for index, one in zip(indices, _group(tokenizer, [requests[i] for i in indices]), strict=True):
            out[index] = one
    return out


def _group(tokenizer: PreTrainedTokenizerBase, requests: list[Request]) -> list[Rendered | BadRow]:
    """Conversations that share everything but their messages."""
    first = requests[0]
    try:
        arguments = rendering(tokenizer, first.tools or None, first.kwargs)
        template = arguments.pop("chat_template", None) or tokenizer.get_chat_template(tools=first.tools or None)
    except (ValueError, jinja2.TemplateError) as error:  # such as a comment without an end
        return [_refused(str(error))] * len(requests)
    arguments = {
        **tokenizer.special_tokens_map,
        **arguments,
        "tools": first.tools or None,
        "add_generation_prompt": first.prompt,
        "return_assistant_tokens_mask": first.mask,
    }
    found = rendered(template, [request.messages for request in requests], arguments)
    texts = [one for one in found if isinstance(one, Text)]
    encoded = iter(_marked(tokenizer, texts) if first.mask else _plain(tokenizer, texts))
    return [next(encoded) if isinstance(one, Text) else _refused(one.reason) for one in found]


def _refused(reason: str) -> BadRow:
    return BadRow(f"the chat template refuses the conversation ({reason[:120]})")


def _plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> list[Rendered]:
    encoded = ids_of_parts(tokenizer, [one.text for one in texts])
    return [Rendered(ids, one.text) for ids, one in zip(encoded, texts, strict=True)]


def _marked(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> list[Rendered]:
    """As ``apply_chat_template`` does with ``return_assistant_tokens_mask``."""
    if not texts:
        return []
    # verbose: our own limit on length comes later, and is counted
    encoded = tokenizer([one.text for one in texts], add_special_tokens=False, verbose=False)
    out = []
    for number, one in enumerate(texts):
        ids = list(encoded["input_ids"][number])
        mask = [0] * len(ids)
        for start, stop in one.marked:
            first, last = encoded.char_to_token(number, start), encoded.char_to_token(number, stop - 1)
            if first is None:
                break
            stop_token = last + 1 if last else len(ids)
            mask[first:stop_token] = [1] * (stop_token - first)
        out.append(Rendered(ids, one.text, mask))
    return out


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading token ids two sequences share."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    return next(index for index in range(most) if left[index] != right[index])


def turn_requests(prompt: list[Message], answer: list[Message], tools: list | None, kwargs: dict) -> list[Request]:
    """What ``turn_mask`` needs rendered: for each assistant turn the conversation up to it and including it."""
    out = []
    for index, message in enumerate(answer):
        if message["role"] == "assistant":
            out.append(Request(prompt + answer[:index], prompt=True, tools=tools, kwargs=kwargs))
            out.append(Request(prompt + answer[: index + 1], tools=tools, kwargs=kwargs))
    return out


def turn_mask(tokenizer: PreTrainedTokenizerBase, full: list[int], rendered: Sequence[Rendered | BadRow]) -> list[int]:
    """Which tokens of ``full`` (a conversation of several turns) the assistant wrote: 1 for those, 0 for all others.

    ``rendered`` are the results of ``turn_requests``. A turn reaches from where the conversation before it ends, header
    included, to where the conversation with it ends. Raises ``BadRow`` where the template words earlier turns
    differently once later ones follow, since then no such place exists.
    """
    mask = [0] * len(full)
    for before, after in zip(rendered[::2], rendered[1::2], strict=True):
        if isinstance(before, BadRow):
            raise before
        if isinstance(after, BadRow):
            raise after
        start, stop = common_prefix(before.ids, full), common_prefix(after.ids, full)
        rest = after.ids[stop:]
        # An end-of-text token that only the very last turn gets is no difference in wording.
        if stop <= start or (rest and tokenizer.decode(rest, skip_special_tokens=True).strip()):
            raise BadRow(
                "the chat template words earlier turns differently when later ones follow; "
                "use one with {% generation %} markers"
            )
        mask[start:stop] = [1] * (stop - start)
    return mask
