"""`align explain logic.PRESET` and `align explain NAME --logic`: a loss as a formula, and its place among others."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from align.cli.explain import at_defaults, own_objective, wrapped
from align.errors import UserError
from align.objectives import OBJECTIVES, Logic, Objective
from align.objectives.formulas.closed_form import closed_form, coefficient
from align.objectives.formulas.formula import base_of
from align.objectives.formulas.structures import PRESETS, entailed, entailing, nearest, table
from align.recipe.messages import did_you_mean

_WHERE = (
    "rows of the top (✓) are made likelier, those of the bottom (✗) less likely. w and l are the probabilities that "
    "the policy gives the chosen and the rejected answer, exp of the mean log-prob by token unless probability: "
    "sequence; r_w and r_l are the reference's, m_w and m_l made up (gamma); a_w = log w, a_l = log l"
)
_PULLS = (
    "with the logistic link beta s drho/da_w / T_w on the chosen answer, -beta s drho/da_l / T_l on the rejected one; "
    "s = sigmoid(-beta rho), T tokens of the answer (1 with probability: sequence)"
)
_NOT_CALLED = (
    "cannot be read as a formula: its loss needs more than the log-probs of one chosen and one rejected answer."
)
_NO_STRUCTURE = (
    "cannot be read as a formula: no two sets of rows over W and L, with the reference or without, have its loss "
    "through a logistic, squared or hinge link."
)
_INFERRED = "the name; its structure is the only one that fits the author's figure of the order"


def explain(name: str) -> dict[str, Any]:
    """The entry of a preset, named as in ``logic.cCPO``. Raises UserError with the nearest name where there is none."""
    preset = name.removeprefix("logic.")
    if preset not in PRESETS:
        meant = did_you_mean(preset, PRESETS)
        hint = f" Did you mean 'logic.{meant}'?" if meant else ""
        raise UserError(f"logic has no preset {preset!r}.{hint} Presets: {', '.join(PRESETS)}.")
    return {"name": name, "kind": "structure", **_structure(Logic(preset=preset))}  # type: ignore[arg-type]


def decompiled(name: str, *, allow_code: bool = False) -> dict[str, Any]:
    """What an objective with its default fields is as ``logic``, term by term.

    Names are read in any case of letters, save those of classes of the user's, such as ``my_losses:MyLoss``.
    Raises UserError with the nearest name where there is none.
    """
    if ":" in name:
        return _decompiled(name, at_defaults(name, own_objective(name, allow_code=allow_code)))
    names = {known.lower(): known for known in [*OBJECTIVES, *(f"logic.{preset}" for preset in PRESETS)]}
    if name.lower() not in names:
        meant = did_you_mean(name, names.values())
        hint = f" Did you mean {meant!r}?" if meant else ""
        raise UserError(f"{name!r} is no objective, so there is no loss to read.{hint} All: align list objectives.")
    known = names[name.lower()]
    kind, _, preset = known.partition(".")
    return _decompiled(known, OBJECTIVES[kind](**({"preset": preset} if preset else {})))


def _decompiled(name: str, objective: Objective) -> dict[str, Any]:
    """The entry of an objective with its default fields."""
    from align.objectives.decompile import can_be_called, decompile

    bare = objective.bare  # such as the likelihood of an answer alone, without its prompt's
    changed = [f"{field} {value}" for field, value in vars(bare).items() if value != getattr(objective, field)]
    settings = " and ".join(["its default fields", *changed])
    found = decompile(bare) if can_be_called(bare) else []
    terms = [_structure(*part) for part in found if part is not None]
    if not found:
        summary = _NOT_CALLED
    elif not terms:
        summary = _NO_STRUCTURE
    else:
        others = ["a loss that is no formula"] * (len(found) - len(terms))
        summary = f"has, with {settings}, the loss of {' + '.join([t['recipe'] for t in terms] + others)}"
    return {"name": name, "kind": "decompiled", "summary": f"{name} {summary}", "terms": terms}


def _structure(logic: Logic, weight: float = 1.0) -> dict[str, Any]:
    """Everything about the structure of an objective as plain values."""
    structure, name = logic.structure, logic.preset
    preset = PRESETS[name] if name else None
    own = preset or logic
    rows = [(row, row in structure.top, row in structure.bottom) for row in table(structure.atoms)]
    return {
        "preset": name,
        "formula": own.formula,
        "condition": own.condition,
        "additive": own.additive,
        "published": _INFERRED if preset and preset.inferred else "",
        "atoms": structure.atoms,
        "table": [{"row": row, "top": top, "bottom": bottom} for row, top, bottom in rows],
        "exp_rho": closed_form(structure, reference=logic.reference),
        "drho_da_w": coefficient(structure, "W"),
        "drho_da_l": coefficient(structure, "L"),
        "version_of": preset.version_of if preset else "",
        "entails": _neighbours(name, entailed),
        "entailed_by": _neighbours(name, entailing),
        "with_reference": "" if logic.needs_reference else closed_form(structure, reference=True),
        "recipe": _recipe(logic, weight),
    }


def _neighbours(name: str | None, further: Callable[[str], list[str]]) -> dict[str, list[str]]:
    """Presets on one side of another in the order: those next to it, and those beyond."""
    names = further(name) if name else []
    direct = nearest(names, further)
    return {"directly": direct, "beyond": [other for other in names if other not in direct]}


def _recipe(logic: Logic, weight: float) -> str:
    """The objective as a recipe writes it: fields that are not the defaults."""
    given = {field.name: getattr(logic, field.name) for field in fields(logic)}
    given = {key: value for key, value in given.items() if value != getattr(Logic(), key)}
    given |= {"weight": weight} if weight != 1 else {}
    return f"{{{', '.join(['name: logic', *(f'{key}: {_yaml(value)}' for key, value in given.items())])}}}"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def render(entry: dict[str, Any]) -> str:
    """An entry of ``explain`` or ``decompiled`` as text for a terminal."""
    if entry["kind"] == "structure":
        return "\n".join([f"{entry['name']}  a preset of logic", *_rows(entry)])
    return "\n\n".join([textwrap.fill(entry["summary"], 96), *("\n".join(_rows(term)) for term in entry["terms"])])


def _rows(entry: dict[str, Any]) -> list[str]:
    rows = wrapped("formula", entry["formula"])
    rows += wrapped("condition", entry["condition"]) + wrapped("additive", entry["additive"])
    rows += wrapped("published", entry["published"])
    rows.append(f"  {'table':<9} {'  '.join(entry['atoms'])}  top bottom")
    for line in entry["table"]:
        values = "  ".join(
            f"{'T' if value else 'F':<{len(atom)}}" for atom, value in zip(entry["atoms"], line["row"], strict=True)
        )
        marks = f"{'✓' if line['top'] else '':<3} {'✗' if line['bottom'] else ''}"
        rows.append(f"{'':<12}{values}  {marks}".rstrip())
    rows += wrapped("exp(rho)", entry["exp_rho"])
    rows += wrapped("drho/da_w", entry["drho_da_w"]) + wrapped("drho/da_l", entry["drho_da_l"])
    rows += wrapped("where", _WHERE) + wrapped("pulls", _PULLS)
    if entry["version_of"]:
        real = any(base_of(atom) in ("Rw", "Rl") for atom in entry["atoms"])
        of = "the reference" if real else "made-up reference probabilities (gamma)"
        rows += wrapped("order", f"that of {entry['version_of']}, whose version with {of} it is")
    if entry["preset"]:
        rows += wrapped("entails", _listed(entry["entails"]))
        rows += wrapped("entailed", f"by {_listed(entry['entailed_by'])}")
    if entry["with_reference"]:
        rows += wrapped("reference", f"with reference: true, exp(rho) = {entry['with_reference']}")
    return [*rows, "  recipe", f"    objective: {entry['recipe']}"]


def _listed(neighbours: dict[str, list[str]]) -> str:
    beyond = f"; through them {', '.join(neighbours['beyond'])}" if neighbours["beyond"] else ""
    return f"{', '.join(neighbours['directly']) or 'no preset'}{beyond}"
