"""`align explain` and `align list`: what exists, in words and as plain values."""

from __future__ import annotations

import textwrap
from typing import Any

from pydantic import TypeAdapter

from align.errors import UserError
from align.objectives import OBJECTIVES
from align.recipe import Recipe, packaged_recipes
from align.recipe_messages import did_you_mean
from align.recipe_sections import SECTIONS
from align.train_keys import train_keys
from align.train_refused import REFUSED

_WIDTH = 96


def objective_entry(name: str) -> dict[str, Any]:
    """Everything about one objective as plain values."""
    cls = OBJECTIVES[name]
    default = cls()
    fields = TypeAdapter(cls).json_schema().get("properties", {})
    return {
        "name": name,
        "kind": "objective",
        "title": cls.title,
        "equation": cls.equation,
        "paper": cls.paper,
        "when": cls.when,
        "branches": list(default.branches),
        "needs_reference": default.needs_reference,
        "coupled": default.coupled,
        "fields": [_field_entry(key, schema) for key, schema in fields.items()],
    }


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
    allowed = ", ".join(kind["enum"]) if "enum" in kind else ", ".join(bounds)
    return {
        "name": name,
        "default": schema.get("default"),
        "allowed": allowed,
        "description": schema.get("description", ""),
    }


def explain(name: str) -> dict[str, Any]:
    """The entry of an objective, of a word of the verdict, or of a recipe key such as ``data.truncation``.

    Raises UserError with the nearest name where there is none.
    """
    if name in OBJECTIVES:
        return objective_entry(name)
    from align.explain_terms import TERMS

    if name in TERMS:
        return {"name": name, "kind": "term", **TERMS[name]._asdict()}
    keys = recipe_keys()
    if name in keys:
        return keys[name]
    meant = did_you_mean(name, [*OBJECTIVES, *TERMS]) or next((key for key in keys if key.endswith(f".{name}")), None)
    meant = meant or did_you_mean(name, keys)
    hint = f" Did you mean {meant!r}?" if meant else ""
    raise UserError(
        f"{name!r} is no objective, no word of the verdict and no recipe key.{hint} All: align list, docs/config.md."
    )


def recipe_keys() -> dict[str, dict[str, Any]]:
    """Every key of a recipe by its dotted name; ``train`` names that are refused say what to use instead."""
    from align.config_docs import field_entry

    entries: dict[str, dict[str, Any]] = {}

    def add(name: str, kind: str, default: Any, meaning: str) -> None:
        entries[name] = {"name": name, "kind": "key", "type": kind, "default": default, "description": meaning}

    for key in ("name", "seed", "output"):
        add(key, *field_entry(Recipe, key))
    for path, section in SECTIONS.items():
        for key in section.model_fields:
            add(".".join((*path, key)), *field_entry(section, key))
    for key, entry in train_keys().items():
        add(f"train.{key}", entry["type"], entry["default"], entry["help"])
        if "choices" in entry:
            entries[f"train.{key}"]["choices"] = entry["choices"]
    for key, cure in REFUSED.items():
        add(f"train.{key}", "refused", None, f"cannot be set here: {cure}")
    return entries


def render(entry: dict[str, Any]) -> str:
    """An entry of ``explain`` as text for a terminal."""
    if entry["kind"] == "key":
        rows = [entry["name"], f"  type      {entry['type']}", f"  default   {entry['default']}"]
        rows += _wrapped("choices", ", ".join(entry.get("choices", [])))
        return "\n".join([*rows, *_wrapped("meaning", entry["description"])])
    if entry["kind"] == "term":
        rows = [f"{entry['name']}  {entry['summary']}"]
        return "\n".join([*rows, *_wrapped("measured", entry["measured"]), *_wrapped("advice", entry["advice"])])
    rows = [f"{entry['name']}  {entry['title']}"]
    rows += _wrapped("loss", entry["equation"])
    rows += _wrapped("when", entry["when"])
    rows += _wrapped("paper", entry["paper"])
    needs = f"branches {', '.join(entry['branches'])}; {'a' if entry['needs_reference'] else 'no'} reference"
    rows += _wrapped("needs", f"{needs}{'; ' + entry['coupled'] if entry['coupled'] else ''}")
    rows.append("  fields")
    for field in entry["fields"]:
        default = "none" if field["default"] is None else field["default"]
        allowed = f" ({field['allowed']})" if field["allowed"] else ""
        lines = textwrap.wrap(f"{field['description']}{allowed}", _WIDTH - 32) or [""]
        rows.append(f"    {field['name']:<16} {default!s:<10} {lines[0]}")
        rows += [f"{'':<32}{line}" for line in lines[1:]]
    rows += ["  recipe", f"    objective: {{name: {entry['name']}{_example(entry['fields'])}}}"]
    return "\n".join(rows)


def _example(fields: list[dict[str, Any]]) -> str:
    return "".join(f", {field['name']}: {field['default']}" for field in fields[:2] if field["default"] is not None)


def _wrapped(label: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, _WIDTH - 12) if text else []
    return [f"  {label if i == 0 else '':<9} {line}" for i, line in enumerate(lines)]


def listing(what: str) -> dict[str, dict[str, str]]:
    """Name to one line, for ``objectives``, ``recipes`` or ``train``."""
    if what == "objectives":
        return {"objectives": {name: cls.title for name, cls in OBJECTIVES.items()}}
    if what == "recipes":
        return {"recipes": {name: _headline(file) for name, file in packaged_recipes().items()}}
    if what == "train":
        return {"train": {name: entry["help"] for name, entry in train_keys().items()}}
    return {**listing("objectives"), **listing("recipes")}


def _headline(file: Any) -> str:
    """The first comment line of a recipe."""
    with open(file, encoding="utf-8") as lines:
        return next((line.lstrip("# ").strip() for line in lines if line.strip()), "")


def render_listing(tables: dict[str, dict[str, str]]) -> str:
    """A listing as text for a terminal."""
    parts = []
    for title, rows in tables.items():
        width = max((len(name) for name in rows), default=0)
        short = {name: textwrap.shorten(text, _WIDTH - width, placeholder=" ...") for name, text in rows.items()}
        body = [f"  {name:<{width}}  {text}" for name, text in short.items()]
        parts.append("\n".join([title, *(body or ["  none"])]))
    return "\n\n".join(parts)
