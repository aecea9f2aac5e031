"""Formulas of propositional logic over answers: from text to something that is true or false of each row of a table.

An atom says that a model would give an answer: ``W`` and ``L`` that the policy gives the chosen and the rejected one,
``Rw`` and ``Rl`` that the reference does, ``Mw`` and ``Ml`` that a reference of fixed, made-up probabilities does. A
number behind an atom (``W2``) makes a copy: another event of the same probability.

Operators from tightest to loosest: not, and, xor, or, implies (``a -> b -> c`` is ``a -> (b -> c)``), if and only if.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ATOMS = ("W", "L", "Rw", "Rl", "Mw", "Ml")
LONGEST = 200  # characters of a formula, so that nesting has an end

Truth = Callable[[Mapping[str, bool]], bool]

_ATOM = re.compile(rf"({'|'.join(ATOMS)})[2-9]?")
_TOKEN = re.compile(r"\s*(<->|->|\w+|\S)")
_SPELLINGS = {
    "~": "not", "!": "not", "¬": "not",
    "&": "and", "∧": "and",
    "^": "xor", "⊕": "xor",
    "|": "or", "∨": "or",
    "→": "->", "↔": "<->",
    "⊤": "true", "⊥": "false",
}  # fmt: skip
_BINARY: dict[str, tuple[int, Callable[[bool, bool], bool]]] = {
    "<->": (0, operator.eq),
    "->": (1, operator.le),  # False <= True
    "or": (2, operator.or_),
    "xor": (3, operator.ne),
    "and": (4, operator.and_),
}
_END = "the end"
_OPERATOR = "an operator (& | ^ -> <->)"


@dataclass(frozen=True)
class Formula:
    """A formula that was read: the atoms that it names, and whether it ``holds`` where these are true or false."""

    atoms: frozenset[str]
    holds: Truth


def parse(text: str) -> Formula:
    """Read a formula. Raises ValueError with a sentence that names the column and what was expected there."""
    if len(text) > LONGEST:
        raise ValueError(f"a formula has at most {LONGEST} characters, got {len(text)}.")
    reader = _Reader(text)
    holds = reader.expression(0)
    if reader.token != _END:
        raise reader.expected(f"{_OPERATOR} or the end")
    return Formula(frozenset(reader.atoms), holds)


def base_of(atom: str) -> str:
    """The atom of which ``atom`` is a copy: W of W2, and of W."""
    return atom.rstrip("23456789")


class _Reader:
    """A text and the place that has been reached in it."""

    def __init__(self, text: str) -> None:
        self.text, self.atoms = text, set[str]()
        self.written = [(found[1], found.start(1) + 1) for found in _TOKEN.finditer(text)] + [(_END, len(text) + 1)]

    @property
    def token(self) -> str:
        word = self.written[0][0]
        return _SPELLINGS.get(word, word)

    def take(self) -> str:
        token = self.token
        del self.written[0]
        return token

    def expected(self, what: str) -> ValueError:
        word, column = self.written[0]
        return self.error(column, f"expected {what}, got {word if word == _END else repr(word)}.")

    def error(self, column: int, sentence: str) -> ValueError:
        return ValueError(f"column {column} of {self.text!r}: {sentence}")

    def expression(self, loosest: int) -> Truth:
        """What follows, up to an operator that binds looser than level ``loosest``."""
        left = self.operand()
        while self.token in _BINARY and _BINARY[self.token][0] >= loosest:
            level, operation = _BINARY[token := self.take()]
            right = self.expression(level if token == "->" else level + 1)
            left = _joined(operation, left, right)
        return left

    def operand(self) -> Truth:
        word, column = self.written[0]
        if self.token == "not":
            self.take()
            inner = self.operand()
            return lambda row: not inner(row)
        if self.token == "(":
            self.take()
            inner = self.expression(0)
            if self.token != ")":
                raise self.expected(f"{_OPERATOR} or ')'")
            self.take()
            return inner
        if self.token in ("true", "false"):
            value = self.take() == "true"
            return lambda row: value
        if not word.isidentifier() or self.token in _BINARY:
            raise self.expected("an atom, true, false, not or '('")
        if not _ATOM.fullmatch(word):
            raise self.error(
                column,
                f"unknown atom {word!r}. Atoms are W and L (the policy's chosen and rejected answer), Rw and Rl (the "
                "reference's), Mw and Ml (a manual reference's); W2 is a copy of W.",
            )
        self.atoms.add(self.take())
        return lambda row: row[word]


def _joined(operation: Callable[[bool, bool], bool], left: Truth, right: Truth) -> Truth:
    return lambda row: operation(left(row), right(row))
