"""``align eval alpaca``: its parser, and what it does with a model, with answers, or with annotations."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.cli.verbs import (
    ALLOW_CODE,
    TEMPLATE_ARGUMENT,
    Verb,
    argument,
    check_limit,
    check_out,
    flag,
    path,
    template_arguments,
)
from align.errors import Exit, UserError
from align.runs.files import write_atomically
from align.runs.quiet import calm
from align.runs.terminal import echo

if TYPE_CHECKING:
    from align.eval.alpaca_eval import AlpacaResult
    from align.eval.alpaca_figures import Anchors
    from align.eval.alpaca_run import Setup
    from align.judges.judge import Judging
    from align.runs.processes import World

# options that say how answers are drawn or judged
_OF_MODELS = ("system", "template_argument", "temperature", "max_new_tokens", "seed")
_OF_JUDGES = ("judge", "reference", "agreement", "limit", "max_calls", "price_in", "price_out")


def run_alpaca(args: argparse.Namespace) -> int:
    """``align eval alpaca``."""
    _check(args)
    calm()
    if args.annotations:
        from align.eval.alpaca_eval import figures
        from align.eval.alpaca_rows import read_annotations

        found = read_annotations(Path(args.annotations))  # before anything is fetched
        result = figures(found, *_of_hub(args), subset=args.subset)
        if args.out:
            write_atomically(Path(args.out), json.dumps(result.to_json(), indent=1) + "\n")
        return _say_result(args, result)
    from align.runs.processes import World

    return _measure(args, World.here())


def _measure(args: argparse.Namespace, world: World) -> int:
    """Answers are drawn, or read, and judged; every process does its share."""
    from align.eval.alpaca_rows import read_outputs
    from align.eval.alpaca_run import answers, conclude, judged, of_set
    from align.judges.loading import judging
    from align.runs.processes import free

    say = partial(echo, file=sys.stderr if args.json else sys.stdout) if world.rank == 0 else _silent
    setup = _setup(args)
    say(f"{len(setup.instructions):,} instructions; answers, verdicts and the result go to {setup.folder}")
    judge = _early(args, setup, world, say)
    if args.outputs:
        given = read_outputs(Path(args.outputs))
        outputs = of_set(given, setup, args.outputs)
    else:
        outputs = answers(setup, args.model, world, say)
        free()  # the judge may need the memory
    with judging():
        asked = judge if judge is not None else _judge(args, setup, world, say)
        rows = judged(setup, outputs, asked, world, say)
        if world.rank:
            return Exit.OK
        result = conclude(setup, rows, asked, *_of_hub(args), subset=args.subset)
    return _say_result(args, result)


def _setup(args: argparse.Namespace) -> Setup:
    from align.eval.alpaca_rows import reference_outputs
    from align.eval.alpaca_run import Setup
    from align.recipe.sampling import Sampling

    reference = reference_outputs(args.reference)
    folder = Path(args.out or _folder(args))
    sampling = Sampling(
        samples=1,
        max_new_tokens=args.max_new_tokens or 2048,
        temperature=args.temperature or 1.0,
        top_k=1 if args.temperature is None else None,
    )
    return Setup(
        reference,
        folder,
        sampling,
        seed=args.seed or 0,
        system=args.system,
        agreement=args.agreement or 0,
        limit=args.limit,
        template_arguments=template_arguments(args),
    )


def _folder(args: argparse.Namespace) -> Path:
    """In a run its own folder of evaluations; else one in the working directory."""
    from align.runs.directory import LOCK

    run = Path(args.model or ".")
    return run / "eval" / "alpaca" if args.model and (run / LOCK).is_file() else Path("alpaca-eval")


def _early(args: argparse.Namespace, setup: Setup, world: World, say: Any) -> Judging | None:
    """A judge without weights, ready and asked once; one with weights is only looked at. Raises UserError."""
    from align.cli.sample import judge_of
    from align.judges.loading import early_judge

    settings = judge_of(args.judge)
    if settings.endpoint is None:
        return early_judge(settings, base=Path(), allow_code=args.allow_code, device=world.device, say=say)
    from align.eval.alpaca_judge import require_letters

    judge = _judge(args, setup, world, say)
    world.together(lambda: require_letters(judge) if world.rank == 0 else None)
    return judge


def _judge(args: argparse.Namespace, setup: Setup, world: World, say: Any) -> Judging:
    from align.cli.sample import judge_of
    from align.eval.alpaca_judge import OfficialJudge
    from align.judges.calls import CALLS
    from align.judges.loading import load_judge

    settings = judge_of(args.judge)
    if settings.endpoint is None:
        return load_judge(settings, base=Path(), allow_code=args.allow_code, device=world.device, say=say)
    given = {key: getattr(args, key) for key in ("max_calls", "price_in", "price_out")}
    endpoint = settings.endpoint.model_copy(update={key: value for key, value in given.items() if value is not None})
    return OfficialJudge(endpoint, say, calls=setup.folder / CALLS)


def _of_hub(args: argparse.Namespace) -> tuple[dict[int, float] | str, Anchors | str]:
    """Difficulties and anchors; where nobody named them and the Hub cannot give them, why not."""
    from align.eval.alpaca_rows import HUB, read_anchors, read_difficulty

    found: list[Any] = []
    for name, read in ((args.difficulty, read_difficulty), (args.anchors, read_anchors)):
        try:
            found.append(read(name or HUB))
        except UserError as error:
            if name:
                raise
            found.append(str(error))
    return found[0], found[1]


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
    check_limit(args.limit)
    for key, least in (("max_calls", 1), ("max_new_tokens", 1), ("agreement", 0), ("price_in", 0), ("price_out", 0)):
        value = getattr(args, key)
        if value is not None and value < least:
            raise UserError(f"--{key.replace('_', '-')}: must be at least {least}, got {value:g}.")
    if args.temperature is not None and args.temperature <= 0:
        raise UserError(f"--temperature: must be above 0, got {args.temperature:g}. Without it the likeliest is taken.")


def _silent(_: Any) -> None:
    """Where the first process speaks for all."""


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
        argument("--max-calls", metavar="N", type=int, help="most calls of an endpoint, 10,000 by default"),
        argument("--price-in", metavar="X", type=float, help="price of a million tokens read, for the estimate"),
        argument("--price-out", metavar="X", type=float, help="price of a million tokens written"),
        argument("--max-new-tokens", metavar="N", type=int, help="most of an answer, 2048 by default"),
        argument("--temperature", metavar="T", type=float, help="draw at it; by default the likeliest token"),
        argument("--seed", metavar="SEED", type=int, help="of all draws, 0 by default"),
        argument("--system", metavar="TEXT", help="a system message before every instruction"),
        TEMPLATE_ARGUMENT,
        ALLOW_CODE,
        path("--out", metavar="PATH", help="a folder for all files; with --annotations a file"),
    ),
    usage="align eval alpaca [RUN_OR_MODEL] [options]",
)
