"""``align eval relearn``: its parser, and what it attacks a model with. The work is imported only when called."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
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
    one_of,
    path,
    template_arguments,
)
from align.errors import Exit, UserError
from align.runs.files import write_atomically
from align.runs.quiet import calm
from align.runs.terminal import echo

if TYPE_CHECKING:
    from align.eval.leak import Leaking


def run_relearn(args: argparse.Namespace) -> int:
    """``align eval relearn``."""
    check_out(args.out)
    check_limit(args.limit)
    calm()
    from align.eval.finished_run import attack_run

    say = partial(echo, file=sys.stderr if args.json else sys.stdout)
    durability = attack_run(
        args.model,
        source=args.source,
        split=args.split,
        rows=args.rows,
        limit=args.limit,
        retain=args.retain,
        control=args.control,
        steps=args.steps,
        rows_relearned=args.rows_relearned,
        learning_rate=args.learning_rate,
        seed=args.seed,
        leaking=_leaking(args, say),
        system=args.system,
        arguments=template_arguments(args),
        allow_code=args.allow_code,
        say=say,
    )
    text = json.dumps(durability.to_json(), indent=1)
    if args.out:
        write_atomically(Path(args.out), text + "\n")
    echo(text if args.json else "\n".join(["", *durability.lines()]))
    return Exit.OK


def _leaking(args: argparse.Namespace, say: Callable[[str], Any]) -> Leaking:
    """How often to ask, and who says what is a leak. Raises UserError."""
    from align.eval.leak import Leaking

    threshold = {} if args.leaks_at is None else {"threshold": args.leaks_at}
    leaking = Leaking(args.samples, **threshold)
    if args.max_calls is not None and args.max_calls < 1:
        raise UserError(f"--max-calls: must be at least 1, got {args.max_calls}.")
    from align.cli.sample import judge_of

    settings = judge_of(args.judge, max_calls=args.max_calls)
    if settings is None:
        return leaking
    if args.samples == 0:
        raise UserError("--judge judges samples, and --samples 0 draws none: leave one of them out.")
    from dataclasses import replace

    from align.eval.leak_judge import load_leak_judge

    return replace(leaking, judge=load_leak_judge(settings, allow_code=args.allow_code, say=say))


RELEARN = Verb(
    "relearn",
    "whether what was forgotten stays so under attack",
    (
        "align eval relearn runs/npo --control",
        "align eval relearn some/model --source locuslab/TOFU --split forget05 --retain log.json",
    ),
    run_relearn,
    (
        path("model", metavar="RUN_OR_MODEL", help="a run, whose recipe says the rest, or a model"),
        argument("--split", metavar="NAME", help="the forget split, by default the recipe's"),
        path("--source", metavar="DATA", help="where TOFU's questions are, by default the recipe's"),
        argument("--rows", choices=("all", "legacy300"), help="by default the recipe's, else all"),
        argument("--limit", metavar="N", type=int, help="ask only N rows of each set: a trial, no result"),
        path("--retain", metavar="MODEL_OR_LOG", help="what never saw the forget set, else the recipe's"),
        flag("--control", "attack the retain model, too: what exceeds it counts"),
        argument("--steps", metavar="K", type=int, help="steps of relearning, 10 by default"),
        argument("--rows-relearned", metavar="N", type=int, help="forget rows relearned, 20 by default"),
        argument("--learning-rate", metavar="RATE", type=float, help="by default the run's, else 1e-5"),
        argument("--samples", metavar="N", type=int, help="of each question for leak@k: 128, on a CPU 8; 0: none"),
        one_of(
            argument("--leaks-at", metavar="SHARE", type=float, help="ROUGE-L recall of a leak, 0.9 by default"),
            argument("--judge", metavar="SPEC", help="who says what leaks: endpoint:URL#M or function:MOD:F"),
        ),
        argument("--max-calls", metavar="N", type=int, help="most calls of an endpoint, 10,000 by default"),
        argument("--seed", metavar="SEED", type=int, default=0, help="of relearned rows and samples, 0 by default"),
        argument("--system", metavar="TEXT", help="a system message put before every conversation"),
        TEMPLATE_ARGUMENT,
        ALLOW_CODE,
        path("--out", metavar="FILE", help="write the result; a run keeps it in eval/durability.json, too"),
    ),
    usage="align eval relearn RUN_OR_MODEL [options]",
)
