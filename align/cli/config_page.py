"""docs/config.md, written from the recipe's sections and the table of training names so that it cannot go stale.

``make docs`` runs this file, which first brings the table up to date with the installed TRL, and writes the table of
objectives of docs/methods.md, too.
"""

from __future__ import annotations

import types
import typing
from collections import defaultdict
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from align.cli.markdown import table
from align.cli.methods_page import METHODS, methods_page
from align.objectives import OBJECTIVES
from align.recipe import Recipe
from align.recipe.sampling import Endpoint, Fusion, Judge, Rounds, Sampling, Select, Server
from align.recipe.sections import (
    Alternates,
    ConvexDA,
    Data,
    Evaluate,
    Lora,
    Model,
    Output,
    Reference,
    Section,
    Source,
    Watch,
)
from align.recipe.train_defaults import EXPLAINED
from align.recipe.train_keys import TABLE, generate, rendered, train_keys
from align.recipe.train_refused import REFUSED

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "docs/config.md"
_INTRODUCTION = """\
# Configuration

<!-- Written by `make docs`; do not edit. -->

A recipe is one YAML file. Every key below can also be set on the command line: `align train FILE train.max_steps=20
objective.beta=0.2 data.train.0.rows=100`. An unknown key is an error, and so is a value of the wrong type.
Numbers may be written as `5e-6`. `align explain KEY` prints one entry, such as `align explain data.truncation`.
"""
_PAGES: tuple[tuple[str, type[Section]], ...] = (
    ("output", Output),
    ("model", Model),
    ("model.lora", Lora),
    ("data", Data),
    ("data.train, data.forget, data.retain, data.held_out, evaluate.source, judge.fusion.corpus", Source),
    ("data.alternates", Alternates),
    ("data.convex", ConvexDA),
    ("reference", Reference),
    ("watch", Watch),
    ("evaluate", Evaluate),
    ("sampling", Sampling),
    ("sampling.server", Server),
    ("judge", Judge),
    ("judge.endpoint", Endpoint),
    ("judge.fusion", Fusion),
    ("select", Select),
    ("rounds", Rounds),
)


def config_page() -> str:
    """The whole page as Markdown."""
    top = ["name", "seed"]
    rows = [(name, *_field(Recipe.model_fields[name])) for name in top]
    parts = [_INTRODUCTION, "## Top level\n", table(("key", "type", "default", "meaning"), rows)]
    for title, section in _PAGES:
        fields = [(name, *_field(field)) for name, field in section.model_fields.items()]
        parts += [f"## {title}\n", f"{section.__doc__}\n", table(("key", "type", "default", "meaning"), fields)]
    parts += ["## objective\n", _objectives(), "## train\n", _train(), "### Names that are refused\n", _refused()]
    return "\n".join(parts)


def field_entry(section: type[Section], name: str) -> tuple[str, str, str]:
    """Type, default and meaning of one key, as text."""
    return _field(section.model_fields[name])


def _field(field: Any) -> tuple[str, str, str]:
    if field.is_required():
        default = "required"
    else:
        value = field.get_default(call_default_factory=True)
        default = "none" if value is None or value is PydanticUndefined else _yaml(value)
    return _type(field.annotation), default, field.description or ""


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(a) for a in arguments if a is not type(None))
    if origin is typing.Literal:
        return ", ".join(str(a) for a in arguments)
    if origin is list:
        item = _type(arguments[0])
        return f"{item} or list" if item == "source" else f"list of {item}"
    if origin is dict:
        return "mapping"
    if origin is typing.Annotated:
        return _type(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation.__name__.lower()
    return {str: "text", int: "whole number", float: "number", bool: "true/false"}.get(annotation, "any")


def _yaml(value: Any) -> str:
    if isinstance(value, Section):
        return "`{}`"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _objectives() -> str:
    rows = [(name, cls.title, cls.paper) for name, cls in OBJECTIVES.items()]
    text = (
        "`{name: NAME, ...}` with the fields that `align explain NAME` prints, or a list of such mappings, each with\n"
        "a `weight`; their losses are added. `name` may also be `MODULE:CLASS`, an objective of your own\n"
        "(docs/methods.md), which is only run with `--allow-code` on the command line.\n\n"
    )
    return text + table(("name", "objective", "source"), rows)


def _train() -> str:
    rows = [
        (name, key["type"], EXPLAINED.get(name, _json(key["default"])), key["help"])
        for name, key in train_keys().items()
    ]
    text = (
        "Names of `transformers.TrainingArguments`. The defaults are those of a recipe that is silent; some are ours\n"
        "and not those that the meaning, in the words of transformers, may name.\n\n"
        "The launcher (DDP, FSDP, DeepSpeed) is configured apart, in `recipes/accelerate/`.\n\n"
    )
    return text + table(("key", "type", "default", "meaning"), rows)


def _json(value: Any) -> str:
    if value is None:
        return "none"
    return "true" if value is True else "false" if value is False else f"`{value}`" if value != "" else "empty"


def _refused() -> str:
    grouped: dict[str, list[str]] = defaultdict(list)
    for name, cure in REFUSED.items():
        grouped[cure].append(f"`{name}`")
    return table(("names", "instead"), [(", ".join(names), cure) for cure, names in grouped.items()], code=False)


def main() -> None:
    """Write ``align/recipe/train_keys.json``, ``docs/config.md`` and the table in ``docs/methods.md``."""
    TABLE.write_text(rendered(generate()), encoding="utf-8")
    train_keys.cache_clear()
    write_pages()
    print(f"wrote {TABLE.name} ({len(train_keys())} names), {CONFIG} and the table in {METHODS}")


def write_pages() -> None:
    """Write what the pages say of keys and objectives. Imports no torch."""
    (ROOT / CONFIG).write_text(config_page(), encoding="utf-8")
    methods = ROOT / METHODS
    methods.write_text(methods_page(methods.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
