"""``align eval pairwise``: its parser, and what it does with two models and a file of prompts."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from align.cli.verbs import ALLOW_CODE, TEMPLATE_ARGUMENT, Verb, argument, check_limit, path, template_arguments
from align.errors import Exit, UserError
from align.runs.quiet import calm, silent
from align.runs.terminal import echo

# of verbs that let a judge compare answers
ENDPOINT = (
    argument("--max-calls", metavar="N", type=int, help="most calls of an endpoint, 10,000 by default"),
    argument("--price-in", metavar="X", type=float, help="price of a million tokens read, for the estimate"),
    argument("--price-out", metavar="X", type=float, help="price of a million tokens written"),
    argument("--concurrency", metavar="N", type=int, help="calls under way at a time in each process, 8 by default"),
    argument("--timeout", metavar="S", type=float, help="seconds until a call counts as failed, 120 by default"),
)
ENDPOINT_KEYS = ("max_calls", "price_in", "price_out", "concurrency", "timeout")
# of verbs that have one answer drawn to each prompt
ANSWERS = (
    argument("--max-new-tokens", metavar="N", type=int, help="most of an answer, 2048 by default"),
    argument("--temperature", metavar="T", type=float, help="draw at it; by default the likeliest token"),
    argument("--seed", metavar="SEED", type=int, help="of all draws, 0 by default"),
    argument("--system", metavar="TEXT", help="a system message before every prompt"),
    TEMPLATE_ARGUMENT,
)


def check_numbers(args: argparse.Namespace, **least: int) -> None:
    """Refuse numbers that say nothing. Raises UserError."""
    check_limit(args.limit)
    at_least = {"max_calls": 1, "max_new_tokens": 1, "price_in": 0, "price_out": 0, "concurrency": 1, "timeout": 1}
    for key, lowest in {**at_least, **least}.items():
        value = getattr(args, key, None)
        if value is not None and value < lowest:
            raise UserError(f"--{key.replace('_', '-')}: must be at least {lowest}, got {value:g}.")
    warmth = getattr(args, "temperature", None)
    if warmth is not None and warmth <= 0:
        raise UserError(f"--temperature: must be above 0, got {warmth:g}. Without it the likeliest is taken.")


def run_pairwise(args: argparse.Namespace) -> int:
    """``align eval pairwise``."""
    check_numbers(args)
    if Path(args.a).resolve() == Path(args.b).resolve():
        raise UserError(f"{args.a} is named twice: a comparison with itself shows nothing. Name another model.")
    from align.cli.sample import judge_of, source_of

    settings = judge_of(args.judge, **{key: getattr(args, key) for key in ENDPOINT_KEYS})
    calm()
    from align.eval.answers import Drawing, likeliest
    from align.eval.pairwise_run import Pairing, answers, judged, read_prompts
    from align.judges.calls import CALLS
    from align.judges.identity import identity
    from align.judges.loading import early_judge, judging, load_judge
    from align.judges.trial import try_judge
    from align.runs.processes import World

    world = World.here()
    say = partial(echo, file=sys.stderr if args.json else sys.stdout) if world.rank == 0 else silent
    prompts = read_prompts(source_of(args.prompts), say)
    limit = args.limit if args.limit is not None and args.limit < len(prompts) else None
    folder = Path(args.out)
    drawing = Drawing(
        likeliest(args.max_new_tokens, args.temperature), args.seed or 0, args.system, template_arguments(args)
    )
    pairing = Pairing((args.a, args.b), prompts[:limit], folder, drawing, limit)
    say(f"{len(pairing.prompts):,} prompts; answers, verdicts and the result go to {folder}")
    how = {"base": Path(), "allow_code": args.allow_code, "device": world.device, "say": say, "calls": folder / CALLS}
    judge = early_judge(settings, **how)
    world.together(lambda: try_judge(lambda: judge or load_judge(settings, **how)) if world.rank == 0 else None)
    found = answers(pairing, world, say)
    with judging():
        asked = judge if judge is not None else load_judge(settings, **how)
        result = judged(pairing, asked, identity(settings, Path()), *found, world, say)
    if world.rank == 0:
        echo(json.dumps(result.to_json(), indent=1) if args.json else "\n".join(result.lines()))
    return Exit.OK


PAIRWISE = Verb(
    "pairwise",
    "let a judge compare two models on prompts of yours, each pair in both orders",
    (
        "align eval pairwise runs/dpo runs/rpo --prompts prompts.jsonl --judge pair:some/pair-model",
        "align eval pairwise runs/dpo some/model --prompts prompts.jsonl --judge endpoint:http://localhost:8000/v1#judge",
    ),
    run_pairwise,
    (
        path("a", metavar="A", help="a run, a folder of a model or a Hub id"),
        path("b", metavar="B", help="what it is compared with"),
        path("--prompts", metavar="FILE", required=True, help="rows with prompt, instruction or question; or a Hub id"),
        argument("--judge", metavar="SPEC", required=True, help="endpoint:URL#M, reward:M, pair:M or function:MOD:F"),
        argument("--limit", metavar="N", type=int, help="only the first N prompts: a trial, no result"),
        *ENDPOINT,
        *ANSWERS,
        ALLOW_CODE,
        path("--out", metavar="FOLDER", default="pairwise", help="a folder for all files, pairwise by default"),
    ),
    usage="align eval pairwise A B --prompts FILE --judge SPEC [options]",
)
