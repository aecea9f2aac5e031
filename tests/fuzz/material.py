"""What the fuzz tests are made of: values that nobody expects, and ways to put them into what is fine."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

# texts that mean something to a file system, a terminal, a formatter, a template or a page
TEXTS = [
    "",
    "/",
    "~",
    "..",
    ".",
    "../../elsewhere",
    "/dev/zero",
    "pipe",
    "name\0",
    "n" * 300,
    "a/" * 3000,
    "{name}",
    "{0.__class__.__mro__}",
    "%s%n%(x)s",
    "{{ 7 * 7 }}",
    "{% for i in range(99999) %}{% endfor %}",
    "${HOME}",
    "$(touch elsewhere)",
    "\x1b]0;title\x07\x1b[2J",
    "\u202eright to left",
    "half \ud83d",
    "<script>alert(1)</script>",
    "[a](javascript:b)",
    "```",
    "1e999",
    "no",
    "os:system",
    "builtins:exec",
    "12:30",
    "https://user:secret@localhost/v1",
]
NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**55, 10**400, 1e308, -1e308, 1e-320, 0.5]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-5, 5),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(TEXTS),
    st.text(max_size=12),
)


def _deep(levels: int) -> Any:
    value: Any = []
    for level in range(levels):
        value = {"a": value} if level % 3 else [value]
    return value


VALUES = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS) | st.text(max_size=5), inner)
        ),
        max_leaves=6,
    ),
    st.sampled_from([40, 70, 200]).map(_deep),
)


def places(value: Any, above: tuple = ()) -> list[tuple]:
    """The path of everything in nested lists and mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(*above, key) for key, _ in items]
    return found + [path for key, item in items for path in places(item, (*above, key))]


@st.composite
def changed(draw: st.DrawFn, value: Any, keys: tuple[str, ...] = ()) -> Any:
    """A copy in which one to three places hold something else, or are gone; ``keys`` may come in addition."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        known = places(value)
        if not known:
            break
        *above, last = draw(st.sampled_from(known))
        container = value
        for key in above:
            container = container[key]
        how = draw(st.sampled_from(["set", "set", "remove", "add"]))
        if how == "remove":
            del container[last]
        elif how == "add" and isinstance(container, dict) and keys:
            container[draw(st.sampled_from(keys))] = draw(VALUES)
        else:
            container[last] = draw(VALUES)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes, fragments: tuple[bytes, ...] = ()) -> bytes:
    """Bytes of which some are cut off, flipped, doubled or replaced by one of ``fragments``."""
    at, to = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
    how = draw(st.sampled_from(["cut", "flip", "double", "insert", "insert"]))
    if how == "cut":
        return content[:at]
    if how == "flip" and at < len(content):
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if how == "double":
        return content[:to] + content[at:to] * draw(st.integers(1, 3)) + content[to:]
    return content[:at] + draw(st.sampled_from(fragments or (b"\0",))) + content[at:]


def json_text(value: Any) -> str:
    """JSON as Python writes it: what is no number there (NaN) and half characters are in it."""
    return json.dumps(value)
