"""What must not leave this machine in a card or a configuration: secrets, and where on it things lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from align.errors import UserError

# secrets that are known by their beginnings: Hugging Face, OpenAI and those who write theirs alike, GitHub, AWS, Slack,
# Google; private keys; a password in an address
_SHAPES = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\bsk-(?=[\w-]*\d)[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"
    rb"|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[\w-]{35}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^/\s:@]+:[^/\s:@]+@"
)
_NAMED = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")  # variables of the environment that hold one
_LEAST = 8  # characters; a shorter value (EMPTY, none) is no secret


def without_secrets(path: Path, text: bytes) -> None:
    """Raises UserError, naming the line and not the secret, for a text that holds one of a known shape or of ours."""
    at, what = -1, ""
    if found := _SHAPES.search(text):
        at, what = found.start(), "what looks like a secret"
    for name, value in _ours():
        if at < 0 and value in text:
            at, what = text.index(value), f"the value of {name}"
    if at >= 0:
        line = text.count(b"\n", 0, at) + 1
        raise UserError(
            f"{path}:{line} holds {what}: take it out, and let nobody use it any more where others may have seen it."
        )


def _ours() -> Iterator[tuple[str, bytes]]:
    """Secrets of this environment by their names, and the login of the Hub."""
    from huggingface_hub import get_token

    held = {name: value for name, value in os.environ.items() if _NAMED.search(name)} | {"the login": get_token() or ""}
    yield from ((name, value.encode()) for name, value in held.items() if len(value) >= _LEAST)


def without_home(name: str, text: bytes) -> tuple[bytes, list[str]]:
    """The text with ``~`` for the home folder, and a sentence where that changed it."""
    home = str(Path.home()).encode()
    if home == b"/":
        return text, []
    content, count = re.subn(rb"(?<![\w.~-])" + re.escape(home) + rb"(?![\w.-])", b"~", text)
    many = "once" if count == 1 else f"{count} times"
    return content, [f"{name} names your home folder {many}: it goes as ~"] if count else []
