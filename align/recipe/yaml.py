"""YAML with line numbers, without YAML 1.1's traps, and ``key=value`` overrides.

A recipe is read into plain dicts, lists and scalars; beside them stands, for every key and list item, the line it came
from, so that each later complaint can point at it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from align.errors import UserError
from align.outside.files import read_text
from align.outside.limits import ALIASES, DOCUMENT_CHARACTERS, NESTING, RECIPE
from align.recipe.messages import Path, Problem, did_you_mean, dotted, shown

# keys below which one mapping stands for a list of one
_ONE_OR_LIST: tuple[Path, ...] = (("objective",), *(("data", key) for key in ("train", "forget", "retain", "held_out")))
# keys whose value may be a text, which stands for a mapping with that ``path``
_PATH_ALONE: tuple[Path, ...] = (("output",),)
_MERGE = "tag:yaml.org,2002:merge"
# YAML 1.2 numbers: PyYAML's own rules read 5e-6 as text, 010 as 8 and 12:30 as 750.
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)
_INT = re.compile(r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader whose plain scalars follow YAML 1.2 for numbers and know no dates, and which has limits."""

    depth = aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        self.depth += 1
        self.aliases += isinstance(event, yaml.AliasEvent)
        if self.depth > NESTING:
            raise yaml.MarkedYAMLError(
                problem=f"it is nested more than {NESTING} levels deep", problem_mark=event.start_mark
            )
        if self.aliases > ALIASES:
            raise yaml.MarkedYAMLError(problem=f"it has more than {ALIASES} aliases", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in ("float", "int", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass
class Document:
    """What a recipe file says. ``where`` gives the place of a path: ``FILE:LINE``, or the override that set it."""

    name: str
    value: Any
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    bare: set[Path] = field(default_factory=set)  # keys with nothing at all behind the colon
    overridden: dict[Path, str] = field(default_factory=dict)

    def where(self, path: Path) -> str:
        """The place that a reader must look at for ``path``, or for its nearest ancestor that was written down."""
        if path not in self.overridden:
            path = self.shown_path(path)
        for end in range(len(path), -1, -1):
            if path[:end] in self.overridden:
                return f"override {self.overridden[path[:end]]}"
            if path[:end] in self.lines:
                return f"{self.name}:{self.lines[path[:end]]}"
        return self.name

    def shown_path(self, path: Path) -> Path:
        """``path`` without what validation put there: positions of a list of one, and keys below a plain text."""
        kept: list[str | int] = []
        value = self.value
        for part in path:
            if isinstance(value, str):
                break
            if isinstance(part, int) and not isinstance(value, list):
                continue
            kept.append(part)
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                value = None
        return tuple(kept)


def parse_file(file: FilePath, name: str) -> Document:
    """Read a file of YAML. ``name`` is what messages call it.

    Raises:
        UserError: as ``parse`` does, and where it cannot be read or is too large.
    """
    try:
        return parse(read_text(file, RECIPE), name)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}  cannot be read as UTF-8 text: {error}") from None
    except OSError as error:
        raise UserError(f"{name}  cannot be read: {error.strerror}.") from None


def parse(text: str, name: str) -> Document:
    """Read YAML text. ``name`` is what messages call the file.

    Raises:
        UserError: the text is no YAML. Duplicate and unnamed keys are collected in ``problems`` instead.
    """
    document = Document(name, None)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                document.value = _Walker(loader, document).value(node, ())
                document.lines.setdefault((), node.start_mark.line + 1)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{name}{line}  not valid YAML: {what}.\n1 error, nothing was run.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{name}  not valid YAML: {error}.\n1 error, nothing was run.") from None
    return document


class _Walker:
    """Turns YAML nodes into plain values and notes the line of each."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self.loader = loader
        self.document = document
        self.open: set[int] = set()
        self.size = 0  # characters of all values and keys, those behind aliases as often as they are used

    def value(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.ScalarNode):
            self._count(node)
            return self.loader.construct_object(node)
        if id(node) in self.open:
            raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=node.start_mark)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._item(child, (*path, i)) for i, child in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self.open.discard(id(node))

    def _count(self, node: yaml.ScalarNode) -> None:
        self.size += len(node.value) + 1
        if self.size > DOCUMENT_CHARACTERS:
            problem = f"it has more than {DOCUMENT_CHARACTERS:,} characters once aliases are filled in"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def _item(self, node: yaml.Node, path: Path) -> Any:
        self.document.lines[path] = node.start_mark.line + 1
        return self.value(node, path)

    def _mapping(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                merged |= self._merged(value_node, path)
                continue
            # the text as written: a plain `on` or `1` is a name here, not a truth value or a number
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if isinstance(key_node, yaml.ScalarNode):
                self._count(key_node)
            if not key:
                self.document.problems.append(Problem(path, f"line {line}: a key must be a name."))
                continue
            here = (*path, key)
            if key in result:
                first = self.document.lines[here]
                self.document.problems.append(Problem(here, f"given twice, first on line {first}. Remove one."))
            self.document.lines[here] = line
            if isinstance(value_node, yaml.ScalarNode) and value_node.value == "" and value_node.style is None:
                self.document.bare.add(here)
            result[key] = self.value(value_node, here)
        return merged | result

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for part in reversed(nodes):
            if not isinstance(part, yaml.MappingNode):
                raise yaml.MarkedYAMLError(problem="'<<' needs a mapping", problem_mark=node.start_mark)
            result |= self.value(part, path)
        return result


def override(document: Document, text: str) -> None:
    """Apply one ``key=value`` override; dots go down, numbers index lists, the value is YAML.

    ``data.train.0.path`` reaches the one source of ``data.train`` as well where it is no list.

    Mistakes are added to ``document.problems`` under the override's own path.
    """
    key, equals, raw = text.partition("=")
    path: Path = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))

    def refuse(problem: str, at: Path = path) -> None:
        document.overridden.setdefault(at, text)
        document.problems.append(Problem(at, problem))

    if not equals or not all(str(part) for part in path):
        document.overridden[(text,)] = text
        document.problems.append(Problem((text,), "expected key=value, for instance train.learning_rate=1e-6."))
        return
    try:
        parsed = parse(raw, key)
    except UserError as error:
        return refuse(str(error).split("\n")[0].split("  ", 1)[1])
    if parsed.problems:
        return refuse(parsed.problems[0].text)
    if not isinstance(document.value, dict):
        document.value = {}
    path = _as_written(document.value, path)
    if path[:-1] in _PATH_ALONE and isinstance(text_alone := document.value.get(path[0]), str):
        document.value[path[0]] = {"path": text_alone}
    container: Any = document.value
    for depth, part in enumerate(path):
        problem = _step_problem(container, part, path[:depth])
        if problem:
            return refuse(problem)
        if depth == len(path) - 1:
            container[part] = parsed.value
        elif isinstance(container, dict) and container.get(part) is None:
            container[part] = {}
            _forget(document, path[: depth + 1])
            document.overridden[path[: depth + 1]] = text
        container = container[part]
    _forget(document, path)
    document.overridden[path] = text


def _as_written(value: dict[str, Any], path: Path) -> Path:
    """``path`` without the number 0 where one mapping, or nothing yet, stands for the list that it counts in."""
    for key in _ONE_OR_LIST:
        if path[: len(key) + 1] != (*key, 0):
            continue
        found: Any = value
        for part in key:
            found = found.get(part) if isinstance(found, dict) else None
        return path if isinstance(found, list) else (*key, *path[len(key) + 1 :])
    return path


def _step_problem(container: Any, part: str | int, above: Path) -> str | None:
    """Why ``container`` has no place ``part``, or None."""
    name = dotted(above) or "the recipe"
    if isinstance(container, list):
        if not isinstance(part, int):
            return f"{name} is a list of {len(container)}; name the item, as in {name}.0.{part}=..."
        if part >= len(container):
            return f"{name} has {len(container)} items, counted from 0."
        return None
    if isinstance(container, dict):
        if isinstance(part, int):
            return f"{name} is one mapping, not a list; there is no item {part} in it."
        return None
    return f"{name} is {shown(container)}, so nothing can be set below it."


def _forget(document: Document, path: Path) -> None:
    """Drop the lines of what an override replaced, so that errors below it name the override."""
    for known in [p for p in document.lines if p[: len(path)] == path]:
        del document.lines[known]
    document.bare = {p for p in document.bare if p[: len(path)] != path}
    document.overridden = {p: t for p, t in document.overridden.items() if p[: len(path)] != path}


def refusal(document: Document, problems: list[Problem]) -> UserError:
    """All problems as one error, in the order of the file, each with its place."""

    def position(problem: Problem) -> tuple[int, int]:
        where = document.where(problem.path)
        line = where.rsplit(":", 1)[-1]
        return (1, 0) if where.startswith("override ") else (0, int(line) if line.isdigit() else 0)

    lines = []
    for problem in sorted(dict.fromkeys(problems), key=position):
        shown_path = dotted(document.shown_path(problem.path))
        place = document.where(problem.path)
        subject = "" if place == f"override {shown_path}" or not shown_path else f"{shown_path}: "
        lines.append(f"{place}  {subject}{problem.text}")
    count = f"{len(lines)} error{'s' if len(lines) != 1 else ''}"
    return UserError("\n".join([*lines, f"{count}, nothing was run."]))


__all__ = ["Document", "did_you_mean", "override", "parse", "parse_file", "refusal"]
