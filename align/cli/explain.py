"""`align explain` and `align list`: what exists, in words and as plain values."""

from __future__ import annotations

import textwrap
from dataclasses import MISSING, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from align.cli.facts import needs, reduction
from align.errors import UserError
from align.objectives import OBJECTIVES, Objective
from align.recipe import Recipe, packaged_recipes
from align.recipe.messages import did_you_mean
from align.recipe.objective import ELSEWHERE, Code, keys_of, load_objective
from align.recipe.sampling import SECTIONS
from align.recipe.sections import Output
from align.recipe.train_defaults import EXPLAINED
from align.recipe.train_keys import train_keys
from align.recipe.train_refused import REFUSED

_WIDTH = 96


def objective_entry(name: str, cls: type[Objective]) -> dict[str, Any]:
    """Everything about one objective as plain values. Raises UserError where a field has no default."""
    default = at_defaults(name, cls)
    schemas = TypeAdapter(cls).json_schema().get("properties", {})
    return {
        "name": name,
        "kind": "objective",
        "title": cls.title,
        "equation": cls.equation,
        "paper": cls.paper,
        "when": cls.when,
        "branches": list(default.branches),
        "needs_reference": default.needs_reference,
        "anchors": list(default.anchors),
        "coupled": default.coupled,
        "margin": default.m,
        "pulls": default.pulls,
        "needs": needs(default),
        "reduction": reduction(default),
        "fields": [_field_entry(key, schemas[key]) for key in keys_of(cls)],
    }


def at_defaults(name: str, cls: type[Objective]) -> Objective:
    """An objective with its default fields. Raises UserError where one has no default."""
    if bare := [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]:
        raise UserError(f"{name}: {', '.join(bare)} has no default; an objective is explained at its defaults.")
    return cls()


def own_objective(name: str, *, allow_code: bool) -> type[Objective]:
    """A class of the user's such as ``my_losses:MyLoss``, found from the working directory. Raises UserError."""
    return load_objective(name, Code(Path.cwd(), allow_code))


def _field_entry(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    kinds = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    kind = kinds[0]
    bounds = [
        f"{symbol} {kind[key]:g}"
        for key, symbol in (
            ("exclusiveMinimum", ">"),
            ("minimum", ">="),
            ("exclusiveMaximum", "<"),
            ("maximum", "<="),
        )
        if key in kind
    ]
    allowed = ", ".join(map(_plain, kind["enum"])) if "enum" in kind else ", ".join(bounds)
    allowed = " or ".join([allowed, *(_plain(part["const"]) for part in kinds if "const" in part)])
    return {
        "name": name,
        "default": schema.get("default"),
        "example": schema.get("examples", [schema.get("default")])[0],
        "allowed": allowed,
        "description": schema.get("description", ""),
    }


def explain(name: str, *, allow_code: bool = False) -> dict[str, Any]:
    """The entry of an objective, a word of the verdict, a packaged recipe, or a key such as ``data.truncation``.

    An objective may also be a class of the user's, such as ``my_losses:MyLoss``, found from the working directory,
    where code may be run. Raises UserError with the nearest name where there is none.
    """
    if name.lower() in OBJECTIVES:
        return objective_entry(name.lower(), OBJECTIVES[name.lower()])
    if ":" in name:
        return objective_entry(name, own_objective(name, allow_code=allow_code))
    from align.cli.terms import TERMS
    from align.cli.terms_compare import COMPARISON
    from align.cli.terms_consistency import CONSISTENCY
    from align.cli.terms_evaluation import EVALUATION
    from align.cli.terms_export import EXPORTS
    from align.cli.terms_online import ONLINE
    from align.cli.terms_own_text import OWN_TEXT
    from align.cli.terms_plan import PLAN
    from align.cli.terms_reward import REWARD
    from align.cli.terms_stability import STABILITY
    from align.cli.terms_unlearning import UNLEARNING

    terms = TERMS | OWN_TEXT | UNLEARNING | ONLINE | PLAN | REWARD | CONSISTENCY | STABILITY | COMPARISON | EXPORTS
    terms |= EVALUATION
    if name in terms:
        return {"name": name, "kind": "term", **terms[name]._asdict()}
    recipes = packaged_recipes()
    if name in recipes:
        return {"name": name, "kind": "recipe", "header": _header(recipes[name]), "file": str(recipes[name])}
    keys = recipe_keys()
    plain = ".".join(part for part in name.split(".") if not part.isdigit())  # objective.0.beta is objective.beta
    if plain in keys:
        return keys[plain]
    if name.lower() in ELSEWHERE:
        raise UserError(
            f"{name!r} is called {ELSEWHERE[name.lower()]!r} here: align explain {ELSEWHERE[name.lower()]}."
        )
    meant = next((key for key in keys if key.endswith(f".{name}")), None)
    meant = meant or did_you_mean(name, [*OBJECTIVES, *terms]) or did_you_mean(name, [*keys, *recipes])
    hint = f" Did you mean {meant!r}?" if meant else ""
    raise UserError(
        f"{name!r} is no objective, no word of the verdict, no recipe and no recipe key.{hint} "
        "All: align list, docs/config.md."
    )


def recipe_keys() -> dict[str, dict[str, Any]]:
    """Every key of a recipe by its dotted name; ``train`` names that are refused say what to use instead."""
    from align.cli.config_page import field_entry

    entries: dict[str, dict[str, Any]] = {}

    def add(name: str, kind: str, default: Any, meaning: str) -> None:
        entries[name] = {"name": name, "kind": "key", "type": kind, "default": default, "description": meaning}

    for key in ("name", "seed", "objective"):
        add(key, *field_entry(Recipe, key))
    add("output", "text or mapping", *field_entry(Output, "path")[1:])
    for path, section in SECTIONS.items():
        for key in section.model_fields:
            add(".".join((*path, key)), *field_entry(section, key))
    add("objective.name", "text", "required", "which objective")
    entries["objective.name"]["choices"] = list(OBJECTIVES)
    add("objective.weight", "number", "1", "times this loss in the sum, where objective is a list")
    for key, where in _objective_fields().items():
        entries[f"objective.{key}"] = {"name": f"objective.{key}", "kind": "field", "objectives": where}
    for key, entry in train_keys().items():
        default = EXPLAINED[key].replace("`", "") if key in EXPLAINED else entry["default"]
        add(f"train.{key}", entry["type"], default, entry["help"])
        if "choices" in entry:
            entries[f"train.{key}"]["choices"] = entry["choices"]
    for key, cure in REFUSED.items():
        add(f"train.{key}", "refused", None, f"cannot be set here: {cure}")
    return entries


def _objective_fields() -> dict[str, dict[str, dict[str, Any]]]:
    """Field to objective to the field's entry: one name may mean something else in another objective."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, cls in OBJECTIVES.items():
        for field in objective_entry(name, cls)["fields"]:
            found.setdefault(field["name"], {})[name] = field
    return found


def render(entry: dict[str, Any]) -> str:
    """An entry of ``explain`` as text for a terminal."""
    if entry["kind"] == "recipe":
        return "\n".join([entry["name"], *(f"  {line}" for line in entry["header"]), f"  file    {entry['file']}"])
    if entry["kind"] == "field":
        return "\n".join([entry["name"], *_field_rows(entry["objectives"])])
    if entry["kind"] == "key":
        rows = [entry["name"], f"  type      {entry['type']}", *wrapped("default", str(entry["default"]))]
        rows += wrapped("choices", ", ".join(entry.get("choices", [])))
        return "\n".join([*rows, *wrapped("meaning", entry["description"])])
    if entry["kind"] == "term":
        rows = [f"{entry['name']}  {entry['summary']}"]
        return "\n".join([*rows, *wrapped("measured", entry["measured"]), *wrapped("advice", entry["advice"])])
    rows = [f"{entry['name']}  {entry['title']}"]
    rows += wrapped("loss", entry["equation"])
    rows += wrapped("when", entry["when"])
    rows += wrapped("paper", entry["paper"])
    rows += wrapped("needs", "; ".join(entry["needs"]))
    rows += wrapped("reduction", entry["reduction"])
    rows += wrapped("margin", f"m = {entry['margin']};  s = sigmoid(-m)" if entry["margin"] else "")
    for label, text in zip(("pulls", ""), _pulls(entry), strict=False):
        rows += wrapped(label, text)
    rows.append("  fields")
    rows += _field_rows({field["name"]: field for field in entry["fields"]})
    rows += ["  recipe", f"    objective: {{name: {entry['name']}{_example(entry['fields'])}}}"]
    return "\n".join(rows)


def _pulls(entry: dict[str, Any]) -> tuple[str, ...]:
    """How hard the loss pulls on the two answers of a pair, a line for each, or why there are no two such numbers."""
    if not isinstance(entry["pulls"], tuple):
        return (entry["pulls"] or "",)
    up, down = ("chosen", "rejected") if {"chosen", "rejected"} & set(entry["branches"]) else ("alternate", "forget")
    raised, lowered = entry["pulls"]
    return f"{up} up by {raised}", f"{down} down by {lowered}"


def _field_rows(fields: dict[str, dict[str, Any]]) -> list[str]:
    """Label, default and meaning of fields, one below the other."""
    rows = []
    width = max(16, max(map(len, fields), default=0))
    for label, field in fields.items():
        default = _plain(field["default"])
        allowed = f" ({field['allowed']})" if field["allowed"] else ""
        start = f"    {label:<{width}} {default:<10} "
        lines = textwrap.wrap(f"{field['description']}{allowed}", _WIDTH - len(start)) or [""]
        rows += [start + lines[0], *(" " * len(start) + line for line in lines[1:])]
    return rows


def _example(fields: list[dict[str, Any]]) -> str:
    given = (field for field in fields[:2] if field["example"] is not None)
    return "".join(f", {field['name']}: {_plain(field['example'])}" for field in given)


def _plain(default: Any) -> str:
    """A default as one writes it; of a number without end, such as a third, six digits."""
    if isinstance(default, bool):
        return str(default).lower()
    endless = isinstance(default, float) and len(str(default)) > 9
    return "none" if default is None else f"{default:g}" if endless else str(default)


def wrapped(label: str, text: str) -> list[str]:
    """Lines of a page: a label and its text, or nothing without a text."""
    lines = textwrap.wrap(text, _WIDTH - 12) if text else []
    return [f"  {label if i == 0 else '':<9} {line}" for i, line in enumerate(lines)]


def listing(what: str) -> dict[str, dict[str, str]]:
    """Name to one line, for ``objectives``, ``recipes``, ``suites`` or ``train``."""
    if what == "objectives":
        return {"objectives": {name: cls.title for name, cls in OBJECTIVES.items()}}
    if what == "recipes":
        return {"recipes": {name: (_header(file) or [""])[0] for name, file in packaged_recipes().items()}}
    if what == "suites":
        from align.eval.suites.reading import packaged_suites, summary

        return {"suites": {name: summary(file) for name, file in packaged_suites().items()}}
    if what == "train":
        return {"train": {name: entry["help"] for name, entry in train_keys().items()}}
    return {**listing("objectives"), **listing("recipes")}


def _header(file: Path) -> list[str]:
    """The comment lines at the top of a recipe, without their marks."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").split("\n"))
    return [line[1:].removeprefix(" ").rstrip() for line in lines]


def render_listing(tables: dict[str, dict[str, str]], *, whole: bool = False) -> str:
    """A listing as text: lines that fit a terminal, or with ``whole`` all of their text, for a pipe."""
    parts = []
    for title, rows in tables.items():
        width = max((len(name) for name in rows), default=0)
        room = _WIDTH - width
        short = rows if whole else {name: textwrap.shorten(rows[name], room, placeholder=" ...") for name in rows}
        body = [f"  {name:<{width}}  {text}".rstrip() for name, text in short.items()]
        parts.append("\n".join([title, *(body or ["  none"])]))
    return "\n\n".join(parts)
