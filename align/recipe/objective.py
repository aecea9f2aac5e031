"""The ``objective`` section: names looked up in the table of objectives, fields checked by their dataclass.

A name such as ``my_losses:MyLoss`` is a class of the user's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path as Folder
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from align.errors import UserError
from align.objectives import OBJECTIVES, Objective, WeightedSum
from align.objectives.formulas.structures import PRESETS
from align.recipe.code import load_code
from align.recipe.messages import Path, Problem, did_you_mean, expected, sentence_of_all, shown

ELSEWHERE = {"sigmoid": "dpo", "sft": "nll", "sppo": "sppo_hard"}  # names that TRL or an earlier version gives them
_TRL_KEYS = {
    "loss_type": "the loss is chosen by name; several are a list such as [{name: dpo}, {name: nll, weight: 0.5}].",
    "loss_weights": "each loss of a list has a weight of its own, such as [{name: dpo}, {name: nll, weight: 0.5}].",
}


@dataclass(frozen=True)
class Code:
    """Where a class of the user's is looked up, the recipe's folder first, and whether it may be run."""

    base: Folder | None = None
    allowed: bool = False


@dataclass(frozen=True)
class Part:
    """One objective of a recipe with its weight in the sum."""

    name: str
    weight: float
    value: Objective

    def dump(self) -> dict[str, Any]:
        """As a recipe writes it, every field resolved."""
        return {"name": self.name, "weight": self.weight, **asdict(self.value)}


def parse_objective(raw: Any, code: Code = Code()) -> tuple[tuple[Part, ...], list[Problem]]:
    """The parts of an ``objective`` section (one mapping, or a list of them) and all mistakes in it.

    Parts that are there already are handed back, so that classes of the user's are looked up once.
    """
    if isinstance(raw, tuple) and all(isinstance(part, Part) for part in raw):
        return raw, []
    here: Path = ("objective",)
    items = raw if isinstance(raw, list) else [raw]
    if not items:
        return (), [Problem(here, "the list is empty; name at least one objective.")]
    parts: list[Part] = []
    problems: list[Problem] = []
    for i, item in enumerate(items):
        part, found = _part(item, (*here, i) if isinstance(raw, list) else here, code)
        problems += found
        if part is not None:
            parts.append(part)
    return tuple(parts), problems


def combined(parts: tuple[Part, ...]) -> Objective:
    """The objective that the parts add up to; a single part of weight 1 is itself."""
    if len(parts) == 1 and parts[0].weight == 1:
        return parts[0].value
    return WeightedSum(tuple((part.value, part.weight) for part in parts))


def _part(item: Any, path: Path, code: Code) -> tuple[Part | None, list[Problem]]:
    if isinstance(item, str):
        known = ELSEWHERE.get(item, item)
        cure = f"write {{name: {known if known in OBJECTIVES else 'dpo'}}}."
        return None, [Problem(path, f"expected a mapping, got {shown(item)}; {cure}")]
    if not isinstance(item, Mapping):
        return None, [Problem(path, expected("a mapping such as {name: dpo, beta: 0.1}", item))]
    name = item.get("name")
    problems = _weight_problems(item.get("weight", 1.0), path)
    if isinstance(name, str) and ":" in name:
        try:
            kind = load_objective(name, code)
        except UserError as error:
            return None, [Problem((*path, "name"), str(error)), *problems]
    elif isinstance(name, str) and name in OBJECTIVES:
        kind = OBJECTIVES[name]
    else:
        return None, [Problem(*_name_problem(item, path)), *problems]
    given = {key: value for key, value in item.items() if key not in ("name", "weight")}
    value, found = _value(kind, given, path)
    problems += found
    if value is None or problems:
        return None, problems
    return Part(name, float(item.get("weight", 1.0)), value), []


def _name_problem(item: Mapping[str, Any], path: Path) -> tuple[Path, str]:
    if "name" not in item:
        trl = next((f" {key}: {text}" for key, text in _TRL_KEYS.items() if key in item), "")
        return path, f"name is missing.{trl} All: align list objectives."
    name = item["name"]
    if not isinstance(name, str):
        return (*path, "name"), expected("text", name)
    if name in ELSEWHERE:
        return (*path, "name"), f"{name!r} is called {ELSEWHERE[name]!r} here."
    kind, _, preset = name.partition(".")
    if kind == "logic" and (meant := did_you_mean(preset, PRESETS)):
        return (*path, "name"), f"a preset of logic is written {{name: logic, preset: {meant}}}."
    meant = did_you_mean(name, OBJECTIVES)
    hint = f" Did you mean {meant!r}?" if meant else ""
    return (*path, "name"), f"{name!r} is not a known objective.{hint} All: align list objectives."


def _weight_problems(weight: Any, path: Path) -> list[Problem]:
    here = (*path, "weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        return [Problem(here, expected("a number", weight))]
    if not math.isfinite(weight) or weight <= 0:
        return [Problem(here, f"must be greater than 0, got {weight}.")]
    return []


def load_objective(name: str, code: Code) -> type[Objective]:
    """The class of the user's behind ``module:Class``.

    Raises:
        UserError: where it may not be run, is not there, or is no objective that a recipe could set the fields of.
    """
    what, example = "objective", "MODULE:CLASS, such as my_losses:MyLoss"
    kind = load_code(name, code.base, allowed=code.allowed, what=what, example=example, fits=_is_objective)
    if "__dataclass_params__" not in vars(kind):  # a base has fields, its own are only read of a dataclass
        raise UserError(f"{name} is no dataclass: write @dataclass(frozen=True) above the class.")
    try:
        _adapter(kind)
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        what = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"the fields of {name} cannot be checked: {what}") from error
    return kind


def _is_objective(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Objective) and value not in (Objective, WeightedSum)


def keys_of(kind: type[Objective]) -> list[str]:
    """The keys that a recipe may set of an objective: its own, then those that it shares with others."""
    return [field.name for field in sorted(fields(kind), key=lambda field: bool(field.kw_only))]


def _adapter(kind: type[Objective]) -> TypeAdapter[Objective]:
    return TypeAdapter(kind)


def _value(kind: type[Objective], given: Mapping[str, Any], path: Path) -> tuple[Objective | None, list[Problem]]:
    try:
        # through JSON, since pydantic's strict mode takes a dataclass from a mapping only there
        return _adapter(kind).validate_json(json.dumps(dict(given)), strict=True), []
    except ValidationError as error:
        known = keys_of(kind)
        # one sentence for a key: a union reports each of its members; none where keys do not fit each other
        entries: dict[Path, list[Any]] = {}
        for entry in error.errors(include_url=False):
            entries.setdefault((*path, *entry["loc"][:1]), []).append(entry)
        texts = {
            where: _TRL_KEYS.get(str(where[-1])) or sentence_of_all(found, known) for where, found in entries.items()
        }
        return None, [Problem(where, text) for where, text in texts.items()]


__all__ = ["Code", "Part", "combined", "keys_of", "load_objective", "parse_objective"]
