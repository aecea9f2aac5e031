"""Judges that are a Python function of the user's.

A function is code, so it is imported only where the command line allows it.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.data.tokens.samples import Prompt
from align.errors import UserError, told
from align.judges.judge import CompareJudge, ScoreJudge
from align.recipe.code import load_code

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


def load_function(spec: str, base: Path | None, *, allow_code: bool = True) -> Function:
    """The function behind ``module:function``, its module imported from ``base`` or as Python finds it.

    Raises:
        UserError: where it may not be run, or there is no such function, as ``load_code``.
    """
    what, example = "function", "MODULE:FUNCTION, such as rewards:length"
    try:
        return load_code(spec, base, allowed=allow_code, what=what, example=example, fits=callable)
    except UserError as error:
        raise UserError(f"judge.function: {error}") from error


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
        raise UserError(f"judge.function: {spec} failed {where}: {told(error)}.") from error
    try:
        values = list(returned)
    except TypeError:
        raise UserError(
            f"judge.function: {spec} returned {type(returned).__name__}, but a list of {count} numbers was expected: "
            "it is called with lists, of prompts and of answers."
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
