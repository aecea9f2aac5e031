"""How a verb of the command line is declared: a value that says its name, its arguments and what it runs."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from align.errors import UserError
from align.outside.files import name_problem


class Parser(argparse.ArgumentParser):
    """argparse, which also names the word that a misspelt one was meant for."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and leave with exit code 2."""
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if found:
            from align.recipe.messages import did_you_mean

            meant = did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
            message += f". Did you mean {meant!r}?" if meant else ""
        super().error(message)


@dataclass(frozen=True)
class Argument:
    """One argument, in the words of ``argparse.add_argument``; made by ``argument``."""

    names: tuple[str, ...]
    options: dict[str, Any]

    def add_to(self, parser: Any) -> None:
        parser.add_argument(*self.names, **self.options)


@dataclass(frozen=True)
class OneOf:
    """Arguments of which at most one may be given."""

    arguments: tuple[Argument, ...]

    def add_to(self, parser: Any) -> None:
        group = parser.add_mutually_exclusive_group()
        for one in self.arguments:
            one.add_to(group)


def argument(*names: str, **options: Any) -> Argument:
    """An argument: ``argument("--n", metavar="N", type=int, help="...")``."""
    return Argument(names, options)


def path(*names: str, **options: Any) -> Argument:
    """An argument that is a path or may be one: a leading ``~`` is the home folder, where no shell saw to that."""
    return Argument(names, {"type": _place, **options})


def _place(text: str) -> str:
    if (problem := name_problem(text)) is not None:
        raise argparse.ArgumentTypeError(f"no file can be called so: {problem}")
    return os.path.expanduser(text)


def flag(name: str, help: str) -> Argument:
    """An option without a value."""
    return Argument((name,), {"action": "store_true", "help": help})


def one_of(*arguments: Argument) -> OneOf:
    """Options that exclude each other."""
    return OneOf(arguments)


# for every verb that reads a recipe
RECIPE = (
    path("file", metavar="FILE", help="a recipe file, or a name that align list recipes prints"),
    argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help="set a key, such as train.max_steps=20"),
)
ALLOW_CODE = flag("--allow-code", "run Python code that the recipe names: an objective's class, a judge's function")
ANYWAY = flag("--anyway", "start also where the plan says that it does not fit")
RESUME = flag("--resume", "go on from the last complete checkpoint of the run")

# for every verb that asks a model
TEMPLATE_ARGUMENT = argument(
    "--template-argument",
    metavar="KEY=VALUE",
    action="append",
    default=[],
    help="for the chat template; may be repeated",
)


def template_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The values of ``--template-argument``, each read as YAML. Raises UserError."""
    from align.recipe.template_arguments import argument_problem
    from align.recipe.yaml import parse

    found: dict[str, Any] = {}
    for text in args.template_argument:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UserError(f"--template-argument {text}: expected KEY=VALUE, as in enable_thinking=false.")
        document = parse(value, "--template-argument")
        if document.problems:
            raise UserError(f"--template-argument {text}: {document.problems[0].text}")
        found[key] = document.value
    if (problem := argument_problem(found)) is not None:
        raise UserError(f"--template-argument: {problem}.")
    return found


def check_limit(limit: int | None) -> None:
    """Refuse a trial of no rows. Raises UserError."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit: must be at least 1, got {limit}.")


def check_out(out: str | None, option: str = "--out") -> None:
    """Whether a file can be written there, before anything is measured. Raises UserError."""
    if out and not Path(out).parent.is_dir():
        raise UserError(f"{option} {out}: there is no folder {Path(out).parent}.")
    if out and (Path(out).is_dir() or not os.access(Path(out).parent, os.W_OK)):
        raise UserError(f"{option} {out}: no file can be written there; name another.")


@dataclass(frozen=True)
class Verb:
    """A verb, or with ``verbs`` a group of them. Every verb takes ``--json``, and help looks the same for all.

    Attributes:
        summary: half a sentence, in lower case.
        examples: whole commands, a line each.
        run: takes the parsed arguments and returns the exit code; None for a group.
        usage: where argparse's own line would be too long.
        of: what the verbs of a group are called in its usage, such as SUITE.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    run: Callable[[argparse.Namespace], int] | None = None
    arguments: tuple[Argument | OneOf, ...] = ()
    verbs: tuple[Verb, ...] = ()
    usage: str | None = None
    of: str = "VERB"

    def add_to(self, verbs: Any) -> None:
        """Add the parser of this verb to argparse's ``subparsers``."""
        parser = verbs.add_parser(
            self.name,
            help=self.summary,
            description=f"{self.summary[0].upper()}{self.summary[1:]}.",
            epilog="\n  ".join(("examples:", *self.examples)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            usage=self.usage,
        )
        if self.run is not None:
            flag("--json", "print plain JSON for scripts").add_to(parser)
            parser.set_defaults(run=self.run)
        for one in self.arguments:
            one.add_to(parser)
        if self.verbs:
            below = parser.add_subparsers(dest=self.of.lower(), metavar=self.of, required=True)
            for verb in self.verbs:
                verb.add_to(below)
