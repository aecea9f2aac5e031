"""Python code of the user's that a recipe names as MODULE:NAME: a judge's function, an objective's class.

It is imported only where the command line allows it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.errors import UserError, told
from align.recipe.messages import did_you_mean


def load_code(
    spec: str, base: Path | None, *, allowed: bool, what: str, example: str, fits: Callable[[Any], bool]
) -> Any:
    """What is behind ``module:name``, its module imported from ``base`` or as Python finds it.

    Args:
        base: the recipe's folder; its modules come before others.
        allowed: whether code of the user's may be run.
        what: what the name stands for, such as function.
        example: how to write one, for the message.
        fits: whether a value is such a thing.

    Raises:
        UserError: where code is not allowed, the text is no such name, there is no such module or name, or importing
            it fails. The message does not name the recipe's key.
    """
    name, _, attribute = spec.partition(":")
    if not (attribute.isidentifier() and all(part.isidentifier() for part in name.split("."))):
        raise UserError(f"{spec!r} names no {what}; write {example}.")
    if not allowed:
        raise UserError(
            f"{spec} is Python code, and code is only run where it is allowed: read it, then add --allow-code to the "
            "command."
        )
    module = _imported(name, base)
    value = getattr(module, attribute, None)
    if not fits(value):
        fault = f"is no {what}" if hasattr(module, attribute) else "does not exist"
        known = [key for key, found in vars(module).items() if fits(found)]
        raise UserError(f"{attribute} {fault} in {module.__file__}.{_hint(attribute, known)}")
    return value


def _imported(name: str, base: Path | None) -> Any:
    try:
        with _beside(base):
            importlib.invalidate_caches()
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(f"{name} imports {error.name}, which is not installed.") from error
        beside = [path.stem for path in sorted(base.glob("*.py"))] if base is not None else []
        raise UserError(
            f"there is no module {name}, in {base or Path.cwd()} or installed.{_hint(name, beside)}"
        ) from error
    except Exception as error:
        raise UserError(f"importing {name} failed: {told(error)}.") from error
    _check_place(name, module, base)
    return module


@contextmanager
def _beside(base: Path | None) -> Iterator[None]:
    """Import from ``base`` first."""
    if base is None:
        yield
        return
    folder = str(base.resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _check_place(name: str, module: Any, base: Path | None) -> None:
    """Refuse another module where the recipe's folder has one of the name: Python imports a name once."""
    if base is None:
        return
    inside = base.resolve().joinpath(*name.split("."))
    own = [path for path in (inside.with_suffix(".py"), inside / "__init__.py") if path.exists()]
    if own and Path(module.__file__ or "").resolve() not in own:
        raise UserError(
            f"{own[0]} cannot be imported, since another module is called {name} already ({module.__file__}): rename "
            "the file."
        )


def _hint(word: str, known: list[str]) -> str:
    meant = did_you_mean(word, known)
    return f" Did you mean {meant!r}?" if meant else ""
