"""A structure's formulas as text: exp(rho), and how rho moves with the log-prob of an atom.

The weight of a side is written as a sum of products of p and 1 - p, one for each row; as a single product where the
rows have atoms in common and are all that have them, and as 1 minus that where those are the rows that it lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.objectives.formulas.formula import base_of
from align.objectives.formulas.structures import Row, Structure, table

_NAMES = {"W": "w", "L": "l", "Rw": "r_w", "Rl": "r_l", "Mw": "m_w", "Ml": "m_l"}

_Product = frozenset[tuple[str, bool]]  # atoms, with True for p and False for 1 - p; 1 if empty
_Sum = tuple[tuple[int, _Product], ...]  # products, each with its sign, 1 or -1

_NOTHING: _Product = frozenset()
_ONE: _Sum = ((1, _NOTHING),)


@dataclass(frozen=True)
class _Fraction:
    sign: int
    above: _Sum
    below: _Sum


def closed_form(structure: Structure, *, reference: bool = False) -> str:
    """exp(rho) of a structure, such as ``w / (l (1 - w))``; with ``reference`` times r_l / r_w."""
    above, below = _weight(structure.top, structure.atoms), _weight(structure.bottom, structure.atoms)
    if len(above) == len(below) == 1:
        shared = above[0][1] & below[0][1]
        above, below = ((1, above[0][1] - shared),), ((1, below[0][1] - shared),)
    if reference:
        return _ratio([*_factors(above), "r_l"], ["r_w", *_factors(below)])
    return _ratio(_factors(above), _factors(below))


def coefficient(structure: Structure, atom: str) -> str:
    """drho / d log p of an atom, such as ``1 / (1 - w)``."""
    sides = ((1, structure.top), (-1, structure.bottom))
    slopes = (_slope(_weight(rows, structure.atoms), atom, sign) for sign, rows in sides)
    text = ""
    for part in _added([slope for slope in slopes if slope is not None]):
        sign = "-" if part.sign < 0 else "+"
        ratio = _ratio(_factors(part.above), _factors(part.below))
        text += f" {sign} {ratio}" if text else ratio if part.sign > 0 else f"-{ratio}"
    return text or "0"


def _weight(rows: frozenset[Row], atoms: tuple[str, ...]) -> _Sum:
    """The summed weights of rows."""
    if (product := _product(rows, atoms)) is not None:
        return ((1, product),)
    if (product := _product(frozenset(table(atoms)) - rows, atoms)) is not None:
        return (*_ONE, (-1, product))
    return tuple((1, frozenset(zip(atoms, row, strict=True))) for row in table(atoms) if row in rows)


def _product(rows: frozenset[Row], atoms: tuple[str, ...]) -> _Product | None:
    """The product that weighs these rows, if there is one."""
    common = frozenset.intersection(*(frozenset(zip(atoms, row, strict=True)) for row in rows))
    return common if len(rows) == 2 ** (len(atoms) - len(common)) else None


def _complement(product: _Product) -> _Sum:
    """1 minus a product."""
    if len(product) == 1:
        ((atom, value),) = product
        return ((1, frozenset({(atom, not value)})),)
    return (*_ONE, (-1, product))


def _slope(weight: _Sum, atom: str, sign: int) -> _Fraction | None:
    """``sign`` times the derivative of log weight by log p of an atom, or None where it is 0."""
    p, not_p = (atom, True), (atom, False)
    if len(weight) == 1 and p in weight[0][1]:
        return _Fraction(sign, _ONE, _ONE)
    if len(weight) == 1 and not_p in weight[0][1]:
        return _Fraction(-sign, ((1, frozenset({p})),), ((1, frozenset({not_p})),))
    # p d/dp of p is p, and of 1 - p it is -p
    moved = [(s if p in product else -s, product - {not_p} | {p}) for s, product in weight if product & {p, not_p}]
    if not moved:
        return None
    if all(s < 0 for s, _ in moved):
        sign, moved = -sign, [(1, product) for _, product in moved]
    return _Fraction(sign, tuple(moved), weight)


def _added(parts: list[_Fraction]) -> list[_Fraction]:
    """A sum of fractions, with 1 + x / (1 - x) as 1 / (1 - x) and nothing where two cancel."""
    if len(parts) < 2:
        return parts
    first, second = parts
    if (first.above, first.below) == (second.above, second.below) and first.sign == -second.sign:
        return []
    for one, other in ((first, second), (second, first)):
        # x / (1 - x) is minus the slope of the other side, so the two have the same sign
        if one.above == one.below and other.below == _complement(other.above[0][1]):
            return [_Fraction(one.sign, _ONE, other.below)]
    return parts


def _ratio(above: list[str], below: list[str]) -> str:
    """Factors over factors."""
    if not below:
        return _sum([(1, above)])
    under = below[0] if len(below) == 1 else f"({' '.join(below)})"
    return f"{' '.join(above) or '1'} / {under}"


def _factors(value: _Sum) -> list[str]:
    """The factors of a sum: of a single product its own, else the sum in brackets."""
    if len(value) == 1:
        return _written(value[0][1])
    return [f"({_sum([(sign, _written(product)) for sign, product in value])})"]


def _sum(products: list[tuple[int, list[str]]]) -> str:
    """Signed products as text, those with a plus first; a single factor needs no brackets."""
    text = ""
    for sign, factors in sorted(products, key=lambda product: -product[0]):
        written = factors[0].removeprefix("(").removesuffix(")") if len(factors) == 1 else " ".join(factors) or "1"
        text += f" {'-' if sign < 0 else '+'} {written}" if text else written
    return text


def _written(product: _Product) -> list[str]:
    """Factors of a product, those of p first."""
    order = list(_NAMES)
    literals = sorted(product, key=lambda literal: (not literal[1], order.index(base_of(literal[0])), literal[0]))
    return [_name(atom) if value else f"(1 - {_name(atom)})" for atom, value in literals]


def _name(atom: str) -> str:
    base = base_of(atom)
    return _NAMES[base] + atom.removeprefix(base)
