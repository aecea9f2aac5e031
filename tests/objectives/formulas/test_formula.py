"""Formulas: every spelling and precedence by its truth table, and the sentence of each mistake."""

from __future__ import annotations

from itertools import product

import pytest

from align.objectives.formulas.formula import LONGEST, base_of, parse


def truths(text: str) -> list[bool]:
    """Values where W, L, Rw are (T T T), (T T F), ... (F F F)."""
    formula = parse(text)
    return [formula.holds(dict(zip(("W", "L", "Rw"), row, strict=True))) for row in product((True, False), repeat=3)]


def rows(marks: str) -> list[bool]:
    return [mark == "1" for mark in marks]


@pytest.mark.parametrize(
    ("spellings", "table"),
    [
        (("~W", "!W", "not W", "¬W", "¬ W", "~~~W"), "00001111"),
        (("W & L", "W and L", "W∧L", "(W)&(L)"), "11000000"),
        (("W | L", "W or L", "W∨L"), "11111100"),
        (("W xor L", "W ^ L", "W⊕L"), "00111100"),
        (("W -> L", "W → L", "W->L"), "11001111"),
        (("W <-> L", "W ↔ L"), "11000011"),
        (("true", "⊤", "W | true"), "11111111"),
        (("false", "⊥", "Rw & ~Rw"), "00000000"),
    ],
)
def test_operators_and_their_spellings(spellings: tuple[str, ...], table: str) -> None:
    for text in spellings:
        assert truths(text) == rows(table), text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("~W & L", "(~W) & L"),
        ("W xor L & Rw", "W xor (L & Rw)"),
        ("W & L xor Rw", "(W & L) xor Rw"),
        ("W | L xor Rw", "W | (L xor Rw)"),
        ("W xor L | Rw", "(W xor L) | Rw"),
        ("W | L -> Rw", "(W | L) -> Rw"),
        ("W -> L -> Rw", "W -> (L -> Rw)"),
        ("W <-> L -> Rw", "W <-> (L -> Rw)"),
        ("W -> L <-> Rw", "(W -> L) <-> Rw"),
    ],
)
def test_precedence(text: str, meant: str) -> None:
    assert truths(text) == truths(meant)


def test_the_other_grouping_would_differ() -> None:
    """So that each line above tells the two readings apart."""
    for text, other in [
        ("~W & L", "~(W & L)"),
        ("W xor L & Rw", "(W xor L) & Rw"),
        ("W | L xor Rw", "(W | L) xor Rw"),
        ("W | L -> Rw", "W | (L -> Rw)"),
        ("W -> L -> Rw", "(W -> L) -> Rw"),
        ("W <-> L -> Rw", "(W <-> L) -> Rw"),
    ]:
        assert truths(text) != truths(other)


def test_atoms_and_their_copies() -> None:
    assert parse("(L & Rw & Rw2) -> (W & W2 & Rl) | Mw & Ml").atoms == {
        "W", "W2", "L", "Rw", "Rw2", "Rl", "Mw", "Ml",
    }  # fmt: skip
    assert parse("true").atoms == set()
    assert [base_of(atom) for atom in ("W2", "Rw3", "Ml", "L")] == ["W", "Rw", "Ml", "L"]
    copy = parse("W & ~W2")
    assert copy.holds({"W": True, "W2": False})


KNOWN = (
    "Atoms are W and L (the policy's chosen and rejected answer), Rw and Rl (the reference's), Mw and Ml (a manual "
    "reference's); W2 is a copy of W."
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("L -> X", f"column 6 of 'L -> X': unknown atom 'X'. {KNOWN}"),
        ("w", f"column 1 of 'w': unknown atom 'w'. {KNOWN}"),
        ("W1 | L", f"column 1 of 'W1 | L': unknown atom 'W1'. {KNOWN}"),
        ("L ->", "column 5 of 'L ->': expected an atom, true, false, not or '(', got the end."),
        ("", "column 1 of '': expected an atom, true, false, not or '(', got the end."),
        ("W & | L", "column 5 of 'W & | L': expected an atom, true, false, not or '(', got '|'."),
        ("W xor", "column 6 of 'W xor': expected an atom, true, false, not or '(', got the end."),
        ("W L", "column 3 of 'W L': expected an operator (& | ^ -> <->) or the end, got 'L'."),
        ("W) & L", "column 2 of 'W) & L': expected an operator (& | ^ -> <->) or the end, got ')'."),
        ("(W & L", "column 7 of '(W & L': expected an operator (& | ^ -> <->) or ')', got the end."),
        ("(W L)", "column 4 of '(W L)': expected an operator (& | ^ -> <->) or ')', got 'L'."),
        ("W + L", "column 3 of 'W + L': expected an operator (& | ^ -> <->) or the end, got '+'."),
        ("W & 1", "column 5 of 'W & 1': expected an atom, true, false, not or '(', got '1'."),
        ("W" + " " * LONGEST, "a formula has at most 200 characters, got 201."),
    ],
)
def test_mistakes(text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(text)
    assert str(caught.value) == sentence


def test_deep_nesting_is_read() -> None:
    assert truths("(" * 99 + "W" + ")" * 99) == truths("W")
    assert truths("~" * 198 + "W") == truths("W")
