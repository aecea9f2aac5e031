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
from align.cli.chat import CHAT
from align.cli.compare import COMPARE
from align.cli.evaluate import EVAL
from align.cli.export import EXPORT
from align.cli.launch import LAUNCH
from align.cli.plan import PLAN
from align.cli.probe import PROBE
from align.cli.push import PUSH
from align.cli.report import REPORT
from align.cli.sample import SAMPLE, SHOW
from align.cli.suite import with_suites
from align.cli.verbs import ALLOW_CODE, ANYWAY, RECIPE, RESUME, Parser, Verb, argument, flag
from align.errors import Exit, UserError
from align.runs.disk import on_disk
from align.runs.ended import interrupted
from align.runs.memory import answered
from align.runs.quiet import without_device_notice
from align.runs.signals import SIGNALS, Interrupted
from align.runs.terminal import echo

_MAIN = """\
exit codes: 0 fine, 1 findings, 2 usage or recipe, 3 does not fit, 4 stopped by a guard

examples:
  align check preference/dpo-tldr-pythia-1b
  align train preference/dpo-tldr-pythia-1b output=runs/first
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; ``argv`` defaults to the command line."""
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    named = [word for word in words if not word.startswith("-")]
    if words[:1] == ["show"] and len(named) == 2 and named[1] not in ("run", "samples"):
        words.insert(1, "run")  # align show RUN is short for align show run RUN
    words = with_suites(words)
    args, rest = parser.parse_known_args(words)
    # argparse takes no positionals behind an option that follows them: `align train FILE --resume key=value`
    if rest and (not hasattr(args, "overrides") or any(item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    try:
        without_device_notice()
        with answered(), on_disk():
            code = int(args.run(args))
        sys.stdout.flush()
        return code
    except UserError as error:
        if args.json:
            print(json.dumps({"error": str(error), "exit_code": int(error.exit_code)}))
        else:
            echo(error, file=sys.stderr)
        return int(error.exit_code)
    except Interrupted as error:
        print(interrupted(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        # a file that --resume goes on from; before it is there, there is nothing to go on with
        begun = getattr(args, "begun", None)
        again = " Go on: the same command with --resume." if begun is not None and begun.exists() else ""
        print(f"Interrupted.{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> Parser:
    """The parser of all verbs."""
    parser = Parser(
        prog="align",
        description="Preference alignment and unlearning for language models.",
        epilog=_MAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"align {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    for verb in VERBS:
        verb.add_to(verbs)
    return parser


def _train(args: argparse.Namespace) -> int:
    from align.recipe import load_recipe
    from align.runs.models import require_model

    recipe = load_recipe(args.file, args.overrides, allow_code=args.allow_code)
    require_model(recipe.model, recipe.base)
    from align.train import run

    with SIGNALS.heard():
        SIGNALS.run = (recipe.of_its_run() if args.resume else recipe).output_dir
        flags = {"resume": args.resume, "allow_code": args.allow_code, "anyway": args.anyway}
        result = run(recipe, **flags, echo=_echo(args.json))
    if args.json:
        _print_json(result)
    return Exit.OK


def _check(args: argparse.Namespace) -> int:
    from align.recipe import load_recipe
    from align.runs.models import require_model

    recipe = load_recipe(args.file, args.overrides, allow_code=args.allow_code)
    require_model(recipe.model, recipe.base)
    from align.cli.check import run_check

    report = run_check(recipe, echo=_echo(args.json))
    if args.json:
        _print_json(report)
    return Exit.FINDINGS if report.has_errors else Exit.OK


def _list(args: argparse.Namespace) -> int:
    from align.cli.explain import listing, render_listing

    tables = listing(args.what or "")
    print(json.dumps(tables, indent=1) if args.json else render_listing(tables, whole=not sys.stdout.isatty()))
    if not args.json and "objectives" in tables:
        from align.objectives.formulas.structures import PRESETS

        print(f"\nPresets of logic, as in align explain logic.cCPO:\n  {', '.join(PRESETS)}")
    if not args.json and "recipes" in tables:
        from align.recipe import recipes_folder

        print(f"\nRecipes and launcher configurations (accelerate/) are in {recipes_folder()}")
    return Exit.OK


def _explain(args: argparse.Namespace) -> int:
    from align.cli import explain, logic

    page = logic if args.logic or args.name.startswith("logic.") else explain
    if args.logic:
        entry = logic.decompiled(args.name, allow_code=args.allow_code)
    elif page is logic:
        entry = logic.explain(args.name)
    else:
        entry = explain.explain(args.name, allow_code=args.allow_code)
    print(json.dumps(entry, indent=1) if args.json else page.render(entry))
    return Exit.OK


def _doctor(args: argparse.Namespace) -> int:
    from align.cli.doctor import diagnose

    diagnosis = diagnose()
    print(json.dumps(diagnosis.to_json(), indent=1) if args.json else diagnosis.render())
    return Exit.FINDINGS if diagnosis.problems else Exit.OK


def _echo(to_stderr: bool) -> Any:
    """What prints a line; with ``--json`` standard output is kept for the JSON."""
    return partial(echo, file=sys.stderr if to_stderr else sys.stdout)


def _print_json(value: Any) -> None:
    if hasattr(value, "to_json"):
        value = value.to_json()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    print(value if isinstance(value, str) else json.dumps(value, indent=1, default=str))


VERBS = (
    Verb(
        "train",
        "run one recipe",
        (
            "align train preference/dpo-tldr-pythia-1b train.max_steps=20",
            "align train my.yaml objective.beta=0.2 --resume",
        ),
        _train,
        (*RECIPE, RESUME, ANYWAY, ALLOW_CODE),
    ),
    LAUNCH,
    PLAN,
    Verb(
        "check",
        "look for faults in a recipe and its data, without a model",
        ("align check my.yaml", "align check preference/dpo-llama3-8b-lora data.train.rows=2000 --json"),
        _check,
        (*RECIPE, ALLOW_CODE),
    ),
    Verb(
        "list",
        "name what exists, one line each",
        ("align list objectives", "align list recipes --json"),
        _list,
        (
            argument(
                "what", nargs="?", choices=("objectives", "recipes", "suites", "train"), help="by default the first two"
            ),
        ),
    ),
    Verb(
        "explain",
        "explain an objective, a word of the verdict, a recipe or a key of one",
        ("align explain dpo", "align explain train.learning_rate", "align explain dpo --logic"),
        _explain,
        (
            argument("name", metavar="NAME", help="such as dpo, suppression, data.truncation or my_losses:MyLoss"),
            flag("--logic", "read the loss of an objective as a logical formula"),
            ALLOW_CODE,
        ),
    ),
    EVAL,
    PROBE,
    SAMPLE,
    PUSH,
    SHOW,
    COMPARE,
    REPORT,
    EXPORT,
    CHAT,
    Verb("doctor", "say what this machine has and what is missing", ("align doctor", "align doctor --json"), _doctor),
)


if __name__ == "__main__":
    raise SystemExit(main())
