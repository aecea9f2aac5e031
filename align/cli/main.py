"""The ``align`` command. Each verb imports its work only when called, so that help, lists and typos answer at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Any

from align import __version__
from align.cli.evaluate import add_suites
from align.cli.sample import add_sample, add_show
from align.cli.verbs import add_verb
from align.errors import Exit, UserError

_TRAIN = """\
examples:
  align train preference/dpo-tldr-pythia-1b train.max_steps=20
  align train my.yaml objective.beta=0.2 --resume
"""
_CHECK = """\
examples:
  align check my.yaml
  align check preference/dpo-llama3-8b-lora data.train.rows=2000 --json
"""
_LIST = """\
examples:
  align list objectives
  align list recipes --json
"""
_EXPLAIN = """\
examples:
  align explain dpo
  align explain train.learning_rate
"""
_EVAL = """\
examples:
  align eval tofu runs/npo --split forget10 --retain runs/retain90
  align eval tofu --log TOFU_EVAL.json --retain-log retain90/TOFU_EVAL.json --json
  align eval relearn runs/npo
"""
_DOCTOR = """\
examples:
  align doctor
  align doctor --json
"""
_MAIN = """\
exit codes: 0 fine, 1 findings, 2 usage or recipe, 3 does not fit, 4 stopped by a guard

examples:
  align check preference/dpo-tldr-pythia-1b
  align train preference/dpo-tldr-pythia-1b output=runs/first
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; ``argv`` defaults to the command line."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes no positionals behind an option that follows them: `align train FILE --resume key=value`
    if rest and (not hasattr(args, "overrides") or any(item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except UserError as error:
        if args.json:
            print(json.dumps({"error": str(error), "exit_code": int(error.exit_code)}))
        else:
            print(error, file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        again = " Go on: the same command with --resume." if hasattr(args, "resume") else ""
        print(f"Interrupted.{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="align",
        description="Preference alignment and unlearning for language models.",
        epilog=_MAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"align {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    verb = partial(add_verb, verbs)
    train = verb("train", "run one recipe", _TRAIN, _train)
    _recipe_arguments(train)
    train.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint of the run")
    train.add_argument(
        "--allow-code", action="store_true", help="run the Python function that the recipe's judge names"
    )
    _recipe_arguments(verb("check", "look for faults in a recipe and its data, without a model", _CHECK, _check))
    listed = verb("list", "name what exists, one line each", _LIST, _list)
    listed.add_argument("what", nargs="?", choices=("objectives", "recipes", "train"), help="by default the first two")
    explained = verb(
        "explain", "explain an objective, a word of the verdict, a recipe or a key of one", _EXPLAIN, _explain
    )
    explained.add_argument("name", metavar="NAME", help="such as dpo, suppression or data.truncation")
    add_suites(verb("eval", "measure a model or score a log with a suite", _EVAL))
    add_sample(verbs)
    add_show(verbs)
    verb("doctor", "say what this machine has and what is missing", _DOCTOR, _doctor)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a recipe file, or a name that align list recipes prints")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="set a key, such as train.max_steps=20")


def _train(args: argparse.Namespace) -> int:
    from align.recipe import load_recipe

    recipe = load_recipe(args.file, args.overrides)
    from align.train import run

    result = run(recipe, resume=args.resume, allow_code=args.allow_code, echo=_echo(args.json))
    if args.json:
        _print_json(result)
    return Exit.OK


def _check(args: argparse.Namespace) -> int:
    from align.recipe import load_recipe

    recipe = load_recipe(args.file, args.overrides)
    from align.cli.check import run_check

    report = run_check(recipe, echo=_echo(args.json))
    if args.json:
        _print_json(report)
    return Exit.FINDINGS if report.has_errors else Exit.OK


def _list(args: argparse.Namespace) -> int:
    from align.cli.explain import listing, render_listing

    tables = listing(args.what or "")
    print(json.dumps(tables, indent=1) if args.json else render_listing(tables, whole=not sys.stdout.isatty()))
    if not args.json and "recipes" in tables:
        from align.recipe import recipes_folder

        print(f"\nRecipes and launcher configurations (accelerate/) are in {recipes_folder()}")
    return Exit.OK


def _explain(args: argparse.Namespace) -> int:
    from align.cli.explain import explain, render

    entry = explain(args.name)
    print(json.dumps(entry, indent=1) if args.json else render(entry))
    return Exit.OK


def _doctor(args: argparse.Namespace) -> int:
    from align.cli.doctor import diagnose

    diagnosis = diagnose()
    print(json.dumps(diagnosis.to_json(), indent=1) if args.json else diagnosis.render())
    return Exit.FINDINGS if diagnosis.problems else Exit.OK


def _echo(to_stderr: bool) -> Any:
    """``print``, or with ``--json`` a print that keeps standard output for the JSON."""
    if not to_stderr:
        return print

    def echo(*values: Any, **options: Any) -> None:
        print(*values, **{**options, "file": sys.stderr})

    return echo


def _print_json(value: Any) -> None:
    if hasattr(value, "to_json"):
        value = value.to_json()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    print(value if isinstance(value, str) else json.dumps(value, indent=1, default=str))


if __name__ == "__main__":
    raise SystemExit(main())
