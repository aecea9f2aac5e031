"""``align eval RUN --suite NAME...``: its parser, and what it prints."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from align.cli.pairwise import ENDPOINT, ENDPOINT_KEYS, check_numbers
from align.cli.verbs import ALLOW_CODE, Verb, argument, path
from align.errors import Exit, UserError
from align.runs.quiet import calm, silent
from align.runs.terminal import echo


def with_suites(words: list[str]) -> list[str]:
    """``align eval RUN --suite NAME`` is short for ``align eval suite RUN --suite NAME``."""
    named = any(word == "--suite" or word.startswith("--suite=") for word in words)
    short = words[:1] == ["eval"] and words[1:2] != ["suite"] and named
    return ["eval", "suite", *words[1:]] if short else words


def run_suite(args: argparse.Namespace) -> int:
    """``align eval RUN --suite NAME...``."""
    check_numbers(args)
    from align.eval.suites.reading import load_suite

    suites = [load_suite(name) for name in args.suite]
    names = [suite.name for suite in suites]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--suite: {twice[0]} is named twice, and both would write eval/{twice[0]}.json: name one.")
    from align.cli.sample import judge_of

    judge = judge_of(args.judge, **{key: getattr(args, key) for key in ENDPOINT_KEYS})
    if judge is not None and not any(suite.settings.kind == "alpaca" for suite in suites):
        raise UserError(f"--judge has no effect: none of {', '.join(names)} asks a judge that one names. Leave it out.")
    calm()
    from align.eval.suites.run import lines, run_suites
    from align.runs.processes import World

    world = World.here()
    found = run_suites(
        args.model,
        suites,
        out=Path(args.out) if args.out else None,
        judge=judge,
        limit=args.limit,
        allow_code=args.allow_code,
        world=world,
        say=partial(echo, file=sys.stderr if args.json else sys.stdout) if world.rank == 0 else silent,
    )
    if world.rank:
        return Exit.OK
    if args.json:
        shown = [{key: value for key, value in one.items() if key != "items"} for one in found]
        echo(json.dumps({one["suite"]: one for one in shown}, indent=1))
    else:
        for one in found:
            echo("\n".join(["", *lines(one)]))
    return Exit.OK


SUITE = Verb(
    "suite",
    "measure with suites by name or file: align eval RUN --suite NAME...",
    (
        "align eval runs/npo --suite tofu-forget10 utility",
        "align eval runs/dpo --suite preference-heldout alpaca --judge endpoint:http://localhost:8000/v1#judge",
        "align eval some/model --suite my-suite.yaml --out results --limit 20",
    ),
    run_suite,
    (
        path("model", metavar="RUN_OR_MODEL", help="a run, a folder of a model or a Hub id"),
        path("--suite", metavar="NAME", nargs="+", required=True, help="names that align list suites prints, or files"),
        argument("--judge", metavar="SPEC", help="for alpaca: endpoint:URL#M, reward:M, pair:M or function:MOD:F"),
        argument("--limit", metavar="N", type=int, help="ask only N rows of each set: a trial, no result"),
        *ENDPOINT,
        ALLOW_CODE,
        path("--out", metavar="FOLDER", help="where results go, by default the run's own folder eval"),
    ),
    usage="align eval RUN_OR_MODEL --suite NAME... [options]",
)
