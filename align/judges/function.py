"""Judges that are a Python function of the user's.

A function is code, so it is imported only where the command line allows it.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.rows.sources import did_you_mean
from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.judges.judge import CompareJudge, ScoreJudge

if TYPE_CHECKING:
    pass


Function = Callable[..., Any]


class FunctionJudge(ScoreJudge):
    """A function ``(prompts, responses)`` that returns one number per response; higher is better.

    Args:
        spec: ``module:function``, whose module lies beside the recipe or is installed; or the function itself.
        base: the recipe's folder.

    Raises:
        UserError: where there is no such function.
    """

    def __init__(self, spec: str | Function, base: Path | None = None) -> None:
        self.name, self.function = _named(spec, base)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One number per response. Raises ``UserError`` where the function fails or returns something else."""
        return _numbers(self.name, self.function, prompts, responses)


class FunctionComparison(CompareJudge):
    """A function ``(prompts, a, b)`` that returns for each prompt the probability that ``a`` is the better response.

    It is asked in both orders, as every judge that compares. Arguments and errors are those of ``FunctionJudge``.
    """

    def __init__(self, spec: str | Function, base: Path | None = None) -> None:
        super().__init__()
        self.name, self.function = _named(spec, base)

    def prefer_first(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[float]:
        """Probability that the response shown first is preferred. Raises ``UserError`` as ``FunctionJudge.score``."""
        values = _numbers(self.name, self.function, prompts, shown, other)
        for row, value in enumerate(values):
            if not 0 <= value <= 1:
                raise UserError(
                    f"judge.function: {self.name} returned {value:g} for row {row}; a function of a and b returns the "
                    "probability that a is better, from 0 to 1."
                )
        return values


def _named(spec: str | Function, base: Path | None) -> tuple[str, Function]:
    """What a function is called in messages, and the function."""
    if isinstance(spec, str):
        return spec, load_function(spec, base)
    return f"{spec.__module__}:{getattr(spec, '__qualname__', type(spec).__qualname__)}", spec


def load_function(spec: str, base: Path | None) -> Callable[..., Any]:
    """The function behind ``module:function``, its module imported from ``base`` or as Python finds it.

    Raises:
        UserError: where the text is no such name, or there is no such module or function, or importing it fails.
    """
    name, _, attribute = spec.partition(":")
    if not (attribute.isidentifier() and all(part.isidentifier() for part in name.split("."))):
        raise UserError(f"judge.function: {spec!r} names no function; write MODULE:FUNCTION, such as rewards:length.")
    try:
        with _beside(base):
            importlib.invalidate_caches()
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(f"judge.function: {name} imports {error.name}, which is not installed.") from error
        beside = sorted(path.stem for path in base.glob("*.py")) if base is not None else []
        raise UserError(
            f"judge.function: there is no module {name}, in {base or Path.cwd()} or installed."
            + did_you_mean(name, beside)
        ) from error
    except Exception as error:
        raise UserError(f"judge.function: importing {name} failed: {_told(error)}.") from error
    _check_place(name, module, base)
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        what = "is no function" if hasattr(module, attribute) else "does not exist"
        raise UserError(f"judge.function: {attribute} {what} in {module.__file__}.{did_you_mean(attribute, known)}")
    return function


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
            f"judge.function: {own[0]} cannot be imported, since another module is called {name} already "
            f"({module.__file__}): rename the file."
        )


def parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C without a signature
        return set()


def _numbers(
    spec: str, function: Callable[..., Any], prompts: Sequence[Prompt], *responses: Sequence[str]
) -> list[float]:
    """What the function returns for these rows, checked: one finite number each."""
    columns: tuple[list[Any], ...] = (list(prompts), *(list(texts) for texts in responses))
    count = len(prompts)
    try:
        returned = function(*copy.deepcopy(columns))  # a copy, lest it change the prompts that others see
    except Exception as error:
        row = _first_failing(function, columns)
        where = f"at row {row}" if row is not None else f"over {count} rows together, though not over each alone"
        raise UserError(f"judge.function: {spec} failed {where}: {_told(error)}.") from error
    try:
        values = list(returned)
    except TypeError:
        raise UserError(
            f"judge.function: {spec} returned {type(returned).__name__}, but a list of {count} numbers was expected."
        ) from None
    if len(values) != count:
        raise UserError(f"judge.function: {spec} returned {len(values)} numbers for {count} rows.")
    numbers = []
    for row, value in enumerate(values):
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"judge.function: {spec} returned {str(value)[:80]!r} for row {row}; a finite number was expected."
            )
        numbers.append(number)
    return numbers


def _first_failing(function: Callable[..., Any], columns: tuple[list[Any], ...]) -> int | None:
    """The first row over which the function fails when it is given that row alone."""
    for row in range(len(columns[0])):
        try:
            function(*copy.deepcopy([[column[row]] for column in columns]))
        except Exception:
            return row
    return None


def _told(error: Exception) -> str:
    """Type and text of an error, on one line."""
    text = " ".join(str(error).split())[:200].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
