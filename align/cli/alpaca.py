"""``align eval alpaca``: its parser, and what it does with a model, with answers, or with annotations."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from align.cli.pairwise import ANSWERS, ENDPOINT, ENDPOINT_KEYS, check_numbers
from align.cli.verbs import ALLOW_CODE, Verb, argument, check_out, flag, path, template_arguments
from align.errors import Exit, UserError
from align.runs.files import write_atomically
from align.runs.quiet import calm, silent
from align.runs.terminal import echo

if TYPE_CHECKING:
    from align.eval.alpaca_eval import AlpacaResult
    from align.eval.alpaca_run import Setup
    from align.runs.processes import World

# options that say how answers are drawn or judged
_OF_MODELS = ("system", "template_argument", "temperature", "max_new_tokens", "seed")
_OF_JUDGES = ("judge", "reference", "agreement", "limit", *ENDPOINT_KEYS)


def run_alpaca(args: argparse.Namespace) -> int:
    """``align eval alpaca``."""
    _check(args)
    calm()
    if args.annotations:
        from align.eval.alpaca_eval import figures
        from align.eval.alpaca_rows import difficulty_and_anchors, read_annotations

        found = read_annotations(Path(args.annotations))  # before anything is fetched
        result = figures(found, *difficulty_and_anchors(args.difficulty, args.anchors), subset=args.subset)
        if args.out:
            write_atomically(Path(args.out), json.dumps(result.to_json(), indent=1) + "\n")
        return _say_result(args, result)
    from align.runs.processes import World

    return _measure(args, World.here())


def _measure(args: argparse.Namespace, world: World) -> int:
    """Answers are drawn, or read, and judged; every process does its share."""
    from align.cli.sample import judge_of
    from align.eval.alpaca_rows import read_outputs
    from align.eval.alpaca_run import evaluate, of_set

    say = partial(echo, file=sys.stderr if args.json else sys.stdout) if world.rank == 0 else silent
    setup = _setup(args)
    judge = judge_of(args.judge, **{key: getattr(args, key) for key in ENDPOINT_KEYS})
    given = of_set(read_outputs(Path(args.outputs)), setup, args.outputs) if args.outputs else None
    result = evaluate(
        setup,
        args.model if given is None else given,
        judge,
        args.difficulty,
        args.anchors,
        subset=args.subset,
        base=Path(),
        allow_code=args.allow_code,
        world=world,
        say=say,
    )
    return Exit.OK if result is None else _say_result(args, result)


def _setup(args: argparse.Namespace) -> Setup:
    from align.eval.alpaca_rows import reference_outputs
    from align.eval.alpaca_run import Setup
    from align.eval.answers import Drawing, likeliest

    drawing = Drawing(
        likeliest(args.max_new_tokens, args.temperature), args.seed or 0, args.system, template_arguments(args)
    )
    return Setup(
        reference_outputs(args.reference),
        Path(args.out or _folder(args)),
        drawing,
        agreement=args.agreement or 0,
        limit=args.limit,
    )


def _folder(args: argparse.Namespace) -> Path:
    """In a run its own folder of evaluations; else one in the working directory."""
    from align.runs.directory import LOCK

    run = Path(args.model or ".")
    return run / "eval" / "alpaca" if args.model and (run / LOCK).is_file() else Path("alpaca-eval")


def _say_result(args: argparse.Namespace, result: AlpacaResult) -> int:
    echo(json.dumps(result.to_json(), indent=1) if args.json else "\n".join(result.lines()))
    return Exit.OK


def _check(args: argparse.Namespace) -> None:
    """One subject, and no option that would be ignored. Raises UserError."""
    given = [name for name in ("model", "outputs", "annotations") if getattr(args, name)]
    if len(given) != 1:
        raise UserError("align eval alpaca takes one of a run or model, --outputs FILE, and --annotations FILE.")
    ignored: tuple[str, ...] = ()
    why = ""
    if args.annotations:
        ignored, why = (*_OF_MODELS, *_OF_JUDGES), "These rows are judged already"
        check_out(args.out)
    elif args.outputs:
        ignored, why = _OF_MODELS, "These answers are drawn already"
    if named := [f"--{key.replace('_', '-')}" for key in ignored if getattr(args, key) not in (None, [])]:
        raise UserError(f"{why}, and {named[0]} says how to: leave it out.")
    if not args.annotations and not args.judge:
        raise UserError("align eval alpaca needs --judge: who compares the answers, such as endpoint:URL#MODEL.")
    check_numbers(args, agreement=0)


ALPACA = Verb(
    "alpaca",
    "AlpacaEval: how often a judge prefers a model's answers to a reference's",
    (
        "align eval alpaca runs/dpo --judge endpoint:https://api.openai.com/v1#gpt-4-1106-preview",
        "align eval alpaca --outputs model_outputs.json --judge reward:some/reward-model --out judged",
        "align eval alpaca --annotations annotations.json --json",
    ),
    run_alpaca,
    (
        path("model", metavar="RUN_OR_MODEL", nargs="?", help="a run, a folder of a model or a Hub id"),
        path("--outputs", metavar="FILE", help="judge these answers in place of a model's"),
        path("--annotations", metavar="FILE", help="compute figures of these verdicts alone"),
        argument("--judge", metavar="SPEC", help="endpoint:URL#M, reward:M, pair:M or function:MOD:F"),
        path("--reference", metavar="FILE", help="answers to compare with, by default AlpacaEval 2's from the Hub"),
        path("--difficulty", metavar="FILE", help="difficulties of the instructions, by default from the Hub"),
        path("--anchors", metavar="FILE", help="rows of the anchor models, by default from the Hub"),
        flag("--subset", "fit length on a part of the set, too, and mark it"),
        argument("--agreement", metavar="N", type=int, help="judge N pairs in the other order, too"),
        argument("--limit", metavar="N", type=int, help="only the first N instructions: a trial, no result"),
        *ENDPOINT,
        *ANSWERS,
        ALLOW_CODE,
        path("--out", metavar="PATH", help="a folder for all files; with --annotations a file"),
    ),
    usage="align eval alpaca [RUN_OR_MODEL] [options]",
)
