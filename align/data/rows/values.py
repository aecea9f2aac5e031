"""Values of a row that are expected to be text, messages, a label: checked, and brought to one form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align.outside.files import parsed

Row = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_SHAREGPT_ROLES |= {"observation": "tool", "function_response": "tool", "function_call": "assistant"}

# Keys of a message that hold what the assistant thinks and what it calls, and all keys that chat templates render.
REASONING = ("reasoning_content", "reasoning", "reasoning_text", "thinking", "thought", "thoughts", "tool_plan")
CALLS = ("tool_calls", "function_calls", "function_call")
_RENDERED = {"role", "content", "name", *REASONING, *CALLS, "tool_call_id", "tool_responses"}
_RENDERED |= {"tools", "functions", "channel", "recipient", "prefix"}


class BadRow(Exception):
    """A row that cannot be used; the message is a short reason, the same for all rows of its sort."""


def messages(row: Mapping[str, Any], name: str, *, plain_role: str | None = None) -> list[Row]:
    """The messages in a column, with ``role`` and ``content``; raises ``BadRow``.

    A single message counts as a list of one and a string as one message of ``plain_role``.
    """
    value = row.get(name)
    if value is None:
        raise BadRow(f"{name} is missing")
    if isinstance(value, str) and plain_role:
        value = [{"role": plain_role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"{name} is not a list of messages")
    if not value:
        raise BadRow(f"{name} has no messages")
    return [_message(message, name) for message in value]


def _message(message: Any, name: str) -> Row:
    if not isinstance(message, dict):
        raise BadRow(f"{name} is not a list of messages")
    # Arrow fills the keys that other rows have with None; a template would print them.
    out = {key: without_none(value) for key, value in message.items() if value is not None}
    if "role" not in out and "from" in out:
        out["role"] = _SHAREGPT_ROLES.get(str(out["from"]), out["from"])
        del out["from"]
    if "content" not in out and "value" in out:
        out["content"] = out.pop("value")
    if not isinstance(out.get("role"), str):
        raise BadRow(f"a message of {name} has no role")
    if isinstance(out.get("content"), list):
        out["content"] = _flat_parts(out["content"], name)
    if not isinstance(out.get("content"), str) and not (any(map(out.get, CALLS)) and "content" not in out):
        raise BadRow(f"a message of {name} has no text in content")
    return out


def with_system(prompt: list[Row], text: str) -> list[Row]:
    """A conversation with a system message in front, unless it has one."""
    if prompt[0]["role"] in ("system", "developer"):
        return prompt
    return [{"role": "system", "content": text}, *prompt]


def rendered_turns(turns: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Messages by which two conversations are compared: without keys that no template renders (id, weight, ...)."""
    return [{key: value for key, value in turn.items() if key in _RENDERED} for turn in turns]


def _flat_parts(parts: list, name: str) -> str:
    """The text of a message that is given in parts; other parts than text are not supported."""
    texts = []
    for part in parts:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise BadRow(f"a message of {name} holds something other than text (images are not supported)")
        texts.append(part["text"])
    return "".join(texts)


def without_none(value: Any) -> Any:
    """The value without the dictionary entries that are None, at any depth."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_none(item) for item in value]
    return value


def answer(turns: list[Row], name: str) -> list[Row]:
    """The messages of an answer as they are, once it is sure that the assistant says something in them."""
    spoken = [message for message in turns if message["role"] == "assistant"]
    if not spoken:
        raise BadRow(f"{name} holds no assistant turn")
    if not any(message.get("content", "").strip() or any(map(message.get, REASONING + CALLS)) for message in spoken):
        raise BadRow(f"{name} is empty")
    return turns


def string(row: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    """The text in a column; raises ``BadRow``."""
    value = row.get(name)
    if value is None:
        raise BadRow(f"{name} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text")
    if not may_be_empty and not value.strip():
        raise BadRow(f"{name} is empty")
    return value


def extras(row: Mapping[str, Any], label: bool = False) -> Row:
    """Tools, template arguments and label of a row, as far as it has them; raises ``BadRow``."""
    out: Row = {}
    if row.get("tools"):
        tools = row["tools"]
        try:
            out["tools"] = without_none(parsed(tools) if isinstance(tools, str) else tools) or None
        except ValueError:
            raise BadRow("tools is not valid JSON") from None
    if row.get("chat_template_kwargs"):
        out["chat_template_kwargs"] = without_none(row["chat_template_kwargs"])
    if label:
        out["label"] = _label(row.get("label"))
    return out


def number(row: Mapping[str, Any], name: str) -> float:
    """The number in a column; a ``preference`` is a probability. Raises ``BadRow``."""
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"{name} is not a finite number")
    if name == "preference" and not 0 <= value <= 1:
        raise BadRow("preference is not between 0 (rejected is better) and 1 (chosen is better)")
    return float(value)


def preferred(row: Mapping[str, Any]) -> str | None:
    """The branch of a pair that is better, by its number ``preference`` where it has one; None for a tie.

    Raises ``BadRow`` where that is no probability.
    """
    if row.get("preference") is None:
        return "chosen"
    share = number(row, "preference")
    return None if share == 0.5 else "chosen" if share > 0.5 else "rejected"


def _label(value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}  # a CSV file knows no booleans
    if isinstance(value, int | float) and value in (0, 1):  # True and False are, too
        return bool(value)
    key = str(value).strip().lower()
    if key not in words:
        raise BadRow("label is none of true, false, 1 and 0")
    return words[key]


def is_messages(value: Any) -> bool:
    """Whether a value is a message or a list of them, in TRL's or in ShareGPT's spelling."""
    if isinstance(value, dict):
        value = [value]
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and bool({"role", "from"} & set(value[0]))
    )


def first_role(value: Any) -> str | None:
    """Role of the first message, in TRL's spelling."""
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return None
    role = first.get("role") or first.get("from")
    return _SHAREGPT_ROLES.get(str(role), role)
