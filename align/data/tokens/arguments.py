"""Template arguments of a tokenizer. They are saved with it, so that a model is asked in the way it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2

from align.data.rows.sources import did_you_mean
from align.recipe.template_arguments import DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEY = "template_arguments"  # in tokenizer_config.json


def kept_arguments(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The template arguments that a tokenizer holds; nothing for one that no run has saved."""
    return dict(tokenizer.init_kwargs.get(_KEY) or {})


def keep_arguments(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
    """Let a tokenizer hold these template arguments in place of those that it held. All its rendering uses them."""
    tokenizer.init_kwargs[_KEY] = dict(arguments)


def rendering(tokenizer: PreTrainedTokenizerBase, tools: list | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``apply_chat_template``: the tokenizer's template arguments, over which ``own`` ones of a row win.

    transformers gives templates nothing but plain values, so a date is written into the template itself.

    Raises:
        ValueError: where the date is none.
    """
    found = {**kept_arguments(tokenizer), **own}
    date = found.pop(DATE, None)
    if date is None:
        return found
    template = tokenizer.get_chat_template(tools=tools)
    return {**found, "chat_template": _dated(template, datetime.fromisoformat(date))}


def _dated(template: str, moment: datetime) -> str:
    """The template with a ``strftime_now`` of its own, which gives ``moment`` in every format that occurs in it."""
    tokens = _tokens(template)
    if not any(kind == "name" and value == DATE for kind, value in tokens):
        return template
    formats = {value for kind, value in tokens if kind == "string" and "%" in value}
    texts = json.dumps({form: moment.strftime(form) for form in sorted(formats)})
    refusal = "its date has a format that is put together while rendering"
    # blocks take the line break behind them away, so the template begins as it did
    return (
        f"{{%- macro {DATE}(format) -%}}{{%- set texts = {texts} -%}}"
        f"{{{{- texts[format] if format in texts else raise_exception('{refusal}') -}}}}{{%- endmacro %}}\n{template}"
    )


def unused_arguments(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> list[str]:
    """A sentence for each argument that the tokenizer's chat template never reads. A date is always given."""
    try:
        known = _names(tokenizer)
    except jinja2.TemplateError:  # it refuses every row, which is said elsewhere
        return []
    named = tokenizer.name_or_path or "the model"
    if known is None:
        why = f"the tokenizer of {named} has no chat template"
        return [f"the template argument {name} changes nothing: {why}" for name in arguments if name != DATE]
    return [
        f"the template argument {name} changes nothing: the chat template never reads it.{did_you_mean(name, known)}"
        for name in arguments
        if name != DATE and name not in known
    ]


def _names(tokenizer: PreTrainedTokenizerBase) -> list[str] | None:
    """Every name in the code of the chat templates, comments and plain text left out; None without a template."""
    template = tokenizer.chat_template
    if not template:
        return None
    texts = template.values() if isinstance(template, dict) else [template]
    return sorted({value for text in texts for kind, value in _tokens(text) if kind == "name"})


def _tokens(template: str) -> list[tuple[str, str]]:
    """Kind and value of every token of a template: strings as they read, not as they are written."""
    return [(token.type, str(token.value)) for token in jinja2.Environment().lexer.tokenize(template)]
