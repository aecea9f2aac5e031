"""What servers answer: completions with or without token ids, and log-probs in the forms that servers give them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def choices_of(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """By their numbers where all have one: servers may give them in the order in which they ended."""
    choices = list(answer["choices"])
    if {choice.get("index") for choice in choices} == set(range(len(choices))):
        choices.sort(key=lambda choice: choice["index"])
    return choices


def ids_of(choice: Mapping[str, Any]) -> Any:
    """The tokens that were drawn, not yet looked at; None where the server does not say.

    vLLM gives them as ``token_ids``; llama.cpp with each log-prob, as long as it gives one for every token.
    """
    given = choice.get("token_ids")
    if given is not None:
        return given
    content = _content(choice)
    return [entry["id"] for entry in content] if content and all("id" in entry for entry in content) else None


def logps_of(choice: Mapping[str, Any], count: int) -> list[float]:
    """Log-probs of the ``count`` tokens that were drawn; nothing where the server does not give them all.

    They come as ``logprobs.token_logprobs`` (OpenAI's completions, vLLM) or ``logprobs.content[].logprob`` (OpenAI's
    chats, llama.cpp).
    """
    logprobs = choice.get("logprobs")
    content = _content(choice)
    if content:
        values: Any = [entry.get("logprob") for entry in content]
    else:
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(values, list) or len(values) != count:
        return []
    return [float(v) for v in values] if all(isinstance(v, int | float) and math.isfinite(v) for v in values) else []


def _content(choice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        return []
    return content
