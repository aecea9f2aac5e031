"""Preference structures: a formula as rows of a truth table, the named ones, and how they are ordered.

A row says of each atom whether it is true. The rows of the *top* are what a loss makes more likely, those of the
*bottom* what it makes less likely; a row may be in both or in neither. From the core formula P, the condition P_C,
which drops rows, and the additive condition P_A, which puts rows on both sides:

    top = (P or P_A) and P_C,    bottom = (not P or P_A) and P_C

One structure entails another if its top lies within the other's and the other's bottom within its own: it asks for
more, and so its loss is at least as large wherever the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations, product

from align.objectives.formulas.formula import ATOMS, base_of, parse

MOST_ATOMS = 8  # a table of 256 rows

Row = tuple[bool, ...]


@dataclass(frozen=True)
class Structure:
    """Two sets of rows over ``atoms``; the values of a row are in the order of the atoms."""

    atoms: tuple[str, ...]
    top: frozenset[Row]
    bottom: frozenset[Row]

    def over(self, atoms: tuple[str, ...]) -> Structure:
        """The same structure in a table with more atoms, which may be true or false."""
        places = [atoms.index(atom) for atom in self.atoms]
        wider = {row: tuple(row[i] for i in places) for row in table(atoms)}
        return Structure(
            atoms,
            frozenset(row for row, own in wider.items() if own in self.top),
            frozenset(row for row, own in wider.items() if own in self.bottom),
        )

    def entails(self, other: Structure) -> bool:
        """Whether this one asks for all that ``other`` asks for."""
        atoms = in_order({*self.atoms, *other.atoms})
        mine, others = self.over(atoms), other.over(atoms)
        return mine.top <= others.top and others.bottom <= mine.bottom


@dataclass(frozen=True)
class Preset:
    """A named structure as its three formulas.

    ``version_of`` names the preset that it is with a reference put in. ``inferred`` is one whose name is published and
    whose structure is not: it is the only one that fits the order that the author's figure draws.
    """

    formula: str
    condition: str = "true"
    additive: str = "false"
    version_of: str = ""
    inferred: bool = False

    @property
    def structure(self) -> Structure:
        return compiled(self.formula, self.condition, self.additive)


PRESETS: dict[str, Preset] = {
    "CPO": Preset("L -> W", "W | L", "W & L"),
    "ORPO": Preset("L -> W", "W xor L"),
    "DPO": Preset("(L & Rw) -> (W & Rl)", "(L & Rw) | (W & Rl)", "L & Rw & W & Rl", version_of="CPO"),
    "SimPO": Preset("(L & Mw) -> (W & Ml)", "(L & Mw) | (W & Ml)", "L & Mw & W & Ml", version_of="CPO"),
    "CE": Preset("W"),
    "CEUnl": Preset("W & ~L"),
    "unCPO": Preset("L -> W"),
    "cCPO": Preset("L -> W", "W | L", inferred=True),
    "cfUnl": Preset("L -> W", "~(W & L)", inferred=True),
    "fUnl": Preset("~L", inferred=True),
    "qfUnl": Preset("L -> W", "~(W & L)", "~W & ~L", inferred=True),
    "cUNL": Preset("~L", "W | L", inferred=True),
    "sCE": Preset("W", additive="W & L", inferred=True),
    "l20": Preset("W & ~L", additive="~W & ~L", inferred=True),
}


@cache
def compiled(formula: str, condition: str, additive: str) -> Structure:
    """The structure of three formulas. Raises ValueError with a sentence if one cannot be read or a side is empty."""
    core, kept, added = (parse(text) for text in (formula, condition, additive))
    named = core.atoms | kept.atoms | added.atoms
    if not {base_of(atom) for atom in named} & {"W", "L"}:
        raise ValueError("the formula names neither W nor L, so there is no answer of the policy to train on.")
    atoms = in_order({"W", "L", *named})
    if len(atoms) > MOST_ATOMS:
        raise ValueError(f"the formulas name {len(atoms)} atoms with W and L; at most {MOST_ATOMS} are compiled.")
    top, bottom = set[Row](), set[Row]()
    for row in table(atoms):
        values = dict(zip(atoms, row, strict=True))
        if not kept.holds(values):
            continue
        if core.holds(values) or added.holds(values):
            top.add(row)
        if not core.holds(values) or added.holds(values):
            bottom.add(row)
    if not top or not bottom:
        side, what = ("top", "(formula or additive)") if not top else ("bottom", "(not formula or additive)")
        raise ValueError(
            f"the {side} is empty: no row of the truth table makes {what} and condition true, so there is nothing to "
            "compare. Weaken the condition or change the formula."
        )
    return Structure(atoms, frozenset(top), frozenset(bottom))


def in_order(atoms: Iterable[str]) -> tuple[str, ...]:
    """Atoms as tables list them: the policy's, the references', copies behind what they are copies of."""
    return tuple(sorted(atoms, key=lambda atom: (ATOMS.index(base_of(atom)), atom)))


def table(atoms: tuple[str, ...]) -> Iterator[Row]:
    """All rows of a truth table, the one in which everything is true first."""
    return product((True, False), repeat=len(atoms))


def two_atom_structures() -> list[Structure]:
    """All structures over W and L of which neither side is empty: 15 times 15."""
    rows = tuple(table(("W", "L")))
    sides = [frozenset(s) for s in chain.from_iterable(combinations(rows, n) for n in range(1, len(rows) + 1))]
    return [Structure(("W", "L"), top, bottom) for top in sides for bottom in sides]


def formulas_of(structure: Structure) -> dict[str, str]:
    """``formula``, ``condition`` and ``additive`` of which a structure is compiled, each a list of rows."""
    top, bottom = structure.top, structure.bottom
    sides = {"formula": top - bottom, "condition": top | bottom, "additive": top & bottom}
    return {name: _listed(rows, structure.atoms) for name, rows in sides.items()}


def _listed(rows: frozenset[Row], atoms: tuple[str, ...]) -> str:
    """A formula that holds in these rows alone."""
    if len(rows) in (0, 2 ** len(atoms)):
        return "true" if rows else "false"
    literals = (
        [atom if value else f"~{atom}" for atom, value in zip(atoms, row, strict=True)]
        for row in table(atoms)
        if row in rows
    )
    return " | ".join(" & ".join(row) for row in literals)


def entailed(name: str) -> list[str]:
    """Presets that a preset entails; DPO and SimPO have the order of CPO, of which they are versions."""
    return [other for other in _ordered(name) if _order(name).entails(_order(other))]


def entailing(name: str) -> list[str]:
    """Presets that entail a preset."""
    return [other for other in _ordered(name) if _order(other).entails(_order(name))]


def nearest(names: list[str], further: Callable[[str], list[str]]) -> list[str]:
    """Of presets on one side of another, those with none between: ``nearest(entailed(name), entailed)``."""
    return [name for name in names if not any(name in further(other) for other in names)]


def _order(name: str) -> Structure:
    return PRESETS[PRESETS[name].version_of or name].structure


def _ordered(name: str) -> list[str]:
    base = PRESETS[name].version_of or name
    return [other for other, preset in PRESETS.items() if other != base and not preset.version_of]
