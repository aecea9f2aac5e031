"""What a row says and the model does not see: texts that a template leaves out, arguments that it does not know."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2

from align.data.rows.values import CALLS, REASONING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN = {"role", "content"}
Line = tuple[str, str]  # what it belongs to ("system text", "tool calls", ...), and one line of it


def lines_of(messages: Sequence[Mapping[str, Any]], tools: Any = None) -> list[Line]:
    """Every line of text in tools and messages, without the white space around it.

    Lines and not whole texts, since templates indent, strip and escape line breaks.
    """
    texts: list[tuple[str, Any]] = [("tool definitions", text) for text in _definitions(tools)]
    for message in messages:
        role = "system" if message["role"] == "developer" else message["role"]
        said = (f"{role} text", message.get("content"))
        if message.keys() <= _PLAIN:  # as nearly all are, of hundreds of thousands
            texts.append(said)
            continue
        texts += [("reasoning", message.get(key)) for key in REASONING]
        texts.append(said)
        texts += [("tool calls", text) for key in CALLS for text in _called(message.get(key))]
    return [
        (what, line.strip())
        for what, text in texts
        if isinstance(text, str)
        for line in text.splitlines()
        if line.strip()
    ]


def unseen(lines: Sequence[Line], text: str) -> set[str]:
    """What has lines that do not occur in ``text``, the rendered conversation. Every line needs a place of its own."""
    place = 0
    for _, line in lines:  # nearly always all are there, in order
        found = text.find(line, place)
        if found < 0:
            break
        place = found + len(line)
    else:
        return set()
    missing: set[str] = set()
    # Long lines first: a short one must not be taken for seen because a long one contains it.
    for what, line in sorted(lines, key=lambda item: -len(item[1])):
        if what in missing:
            continue
        spelling = next((form for form in _spellings(line) if form in text), None)
        if spelling is None:
            missing.add(what)
        else:
            text = text.replace(spelling, "\0", 1)
    return missing


def speaks(answer: Sequence[Line], prompt: Sequence[Line], text: str) -> bool:
    """Whether some line of an answer occurs behind the last line of its prompt in ``text``."""
    behind = text.rpartition(prompt[-1][1])[2] if prompt else text
    return any(line in behind for _, line in answer)


def unknown_arguments(tokenizer: PreTrainedTokenizerBase, tools: Any, arguments: Mapping[str, Any]) -> list[str]:
    """The names among a template's arguments that it never mentions, so that they change nothing."""
    if not arguments:
        return []
    names = _names(tokenizer.get_chat_template(arguments.get("chat_template"), tools))
    own = set(inspect.signature(tokenizer.apply_chat_template).parameters) - {"documents"}
    return [name for name in arguments if name not in names | own]


@lru_cache
def _names(template: str) -> frozenset[str]:
    return frozenset(value for _, kind, value in jinja2.Environment().lex(template) if kind == "name")


def _definitions(value: Any) -> Iterator[str]:
    """Names and descriptions of tools and of their parameters; how types are spelled is the template's affair."""
    if isinstance(value, list):
        for item in value:
            yield from _definitions(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "properties" and isinstance(item, dict):
                for name, schema in item.items():
                    yield name
                    yield from _definitions(schema)
            elif key in ("name", "description") and isinstance(item, str):
                yield item
            else:
                yield from _definitions(item)


def _called(calls: Any) -> Iterator[str]:
    """Names and arguments of tool calls."""
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield from _leaves(function.get("name"))
            yield from _leaves(_parsed(function.get("arguments")))


def _parsed(arguments: Any) -> Any:
    """Arguments that are JSON text as values, numbers as they are spelled."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return arguments


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):  # true and True are the template's affair, too
        yield str(value)


def _spellings(line: str) -> Iterator[str]:
    """A line as it stands, then as JSON writes it inside a text, and inside a text that is inside a text."""
    forms = {line}
    for _ in range(3):
        yield from forms
        forms = {json.dumps(form, ensure_ascii=plain)[1:-1] for form in forms for plain in (False, True)} - forms
