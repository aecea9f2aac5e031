"""Arguments that a chat template is given beside the conversation, the date among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from align.errors import UserError

# The name under which templates ask for the date. As an argument it is a date in ISO form, and that date is given.
DATE = "strftime_now"
# Set by align itself, or by transformers, from the rows.
_TAKEN = (
    *("messages", "conversation", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs"),
)


def argument_problem(arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with template arguments, as a clause for people; None where nothing is."""
    for name, value in arguments.items():
        if name in _TAKEN:
            return f"{name} is set from the rows and cannot be a template argument: leave it out"
        if name == DATE:
            try:
                datetime.fromisoformat(value)
            except (TypeError, ValueError):
                return f"{DATE} is the date that templates are given, such as 2024-07-26, got {value!r}"
        try:
            json.dumps(value)
        except TypeError:
            return f"{name} must be plain values (text, numbers, lists, mappings), got {type(value).__name__}"
    return None


def dated(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run that starts now: its date is one of them, unless they name another.

    Raises:
        UserError: for arguments that no template can be given.
    """
    if (problem := argument_problem(arguments)) is not None:
        raise UserError(f"template_arguments: {problem}.")
    return {**arguments, DATE: arguments.get(DATE) or datetime.now().isoformat(timespec="seconds")}
