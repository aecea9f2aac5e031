"""Files that a run wrote and reads again: what is wrong with one that was damaged, as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.errors import UserError, told
from align.outside.files import parsed
from align.recipe.yaml import parse_file

_LAST = 2**53  # beyond it not every whole number is a float, and no run has so many steps


def damaged(file: Path, why: object) -> UserError:
    """The sentence for a file that cannot be used."""
    return UserError(f"{file} is damaged ({' '.join(str(why).split())[:200]}). Put it back from a copy.")


def json_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object in ``text``, or None where it holds none."""
    try:
        value = parsed(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def counts(place: Any) -> bool:
    """Whether it is the number of a step or of a round."""
    return isinstance(place, int) and not isinstance(place, bool) and 0 <= place < _LAST


def read_lock(file: Path) -> dict[str, Any]:
    """A lock file. Raises UserError where it is damaged."""
    try:
        lock = parse_file(file, file.name).value
    except UserError as error:
        raise damaged(file, str(error).split("\n")[0].split("  ", 1)[-1].rstrip(".")) from error
    if not isinstance(lock, dict) or not isinstance(lock.get("recipe"), dict):
        raise damaged(file, "it holds no recipe")
    return lock


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Within, a file that this program wrote is taken apart. Raises UserError where it is not what was written."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RecursionError) as error:
        raise damaged(file, told(error)) from error
