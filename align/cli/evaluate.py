"""``align eval``: the parser of its suites, and one function for each. The work is imported only when called."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.cli.alpaca import ALPACA
from align.cli.pairwise import PAIRWISE
from align.cli.relearn import RELEARN
from align.cli.suite import SUITE
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
    from align.eval.log import MuseLog, TofuLog
    from align.models.subject import Subject

# options that say how a model is measured
_OF_MODELS = ("split", "source", "question", "system", "template_argument", "reference", "gradnorm", "limit")


def run_tofu(args: argparse.Namespace) -> int:
    """``align eval tofu``."""
    _check_subject(args, "tofu")
    from align.eval.log_read import read_log
    from align.eval.tofu_metrics import metrics

    base = _as_trained(args) if args.model and not args.source else None
    args.rows = args.rows or "all"
    log = read_log(args.log) if args.log else _score_tofu(args.model, args, base)
    retain, file = None, _retain_file(args)
    if file or args.retain:
        retain = read_log(file) if file else _score_tofu(args.retain, args, base)
    result = metrics(log, retain, rows=args.rows, truth_ratio=args.truth_ratio)
    return _report(args, result, log, file)


def run_muse(args: argparse.Namespace) -> int:
    """``align eval muse``."""
    _check_subject(args, "muse")
    from align.eval.log_read import read_muse_log
    from align.eval.muse_metrics import metrics

    log = read_muse_log(args.log) if args.log else _score_muse(args.model, args)
    retain, file = None, _retain_file(args)
    if file or args.retain:
        retain = read_muse_log(file) if file else _score_muse(args.retain, args)
    return _report(args, metrics(log, retain), log, file)


def _as_trained(args: argparse.Namespace) -> Path | None:
    """Ask a run what its recipe's suite asked, and compare with the same retain model; the recipe's folder, or None."""
    from align.eval.finished_run import FinishedRun

    run = FinishedRun.at(args.model, allow_code=args.allow_code)
    settings = run.evaluate
    if settings is None or run.recipe is None:
        return None
    args.source, args.rows = settings.source, args.rows or settings.rows
    args.system = args.system or settings.source.system
    same = args.split in (None, settings.split) and args.question in (None, "question")
    args.split = args.split or settings.split
    kept = run.directory.path / "eval" / "retain.json"
    said = "the questions are from where the run's recipe has them"
    if same and not args.retain and not args.retain_log and kept.is_file():
        args.retain_log = str(kept)
        said += ", and so is the retain model's log"
    _say(args)(said)
    return run.recipe.base


def _score_tofu(name: str, args: argparse.Namespace, base: Path | None) -> TofuLog:
    """The log of a model; ``base`` is where a recipe's own source starts."""
    calm()
    from align.eval.tofu import evaluate
    from align.eval.tofu_data import load_sets

    subject = _load(name, args)  # first, since a mistyped name is the likelier mistake
    usual = "forget" if str(args.source).partition(":")[0] == "world" else "forget10"
    sets = load_sets(args.split or usual, args.source or "locuslab/TOFU", rows=args.rows, base=base, limit=args.limit)
    key = args.question or "question"
    return evaluate(subject, sets, question_key=key, gradnorm=args.gradnorm, reference=_reference(args))


def _score_muse(name: str, args: argparse.Namespace) -> MuseLog:
    """The log of a model."""
    calm()
    from align.eval.muse import evaluate, load_sets

    if not args.source:
        raise UserError("align eval muse needs --source: a folder of MUSE's files, or muse-bench/MUSE-News or -Books.")
    sets = load_sets(args.source, args.limit)
    return evaluate(_load(name, args), sets, gradnorm=args.gradnorm, reference=_reference(args))


def _load(name: str, args: argparse.Namespace) -> Subject:
    from align.models.subject import Subject

    return Subject.load(name, system=args.system, arguments=template_arguments(args), echo=_say(args))


def _say(args: argparse.Namespace) -> Callable[[str], Any]:
    """What prints a sentence; with ``--json`` standard output is kept for the result."""
    return partial(echo, file=sys.stderr if args.json else sys.stdout)


def _reference(args: argparse.Namespace) -> Subject | None:
    return _load(args.reference, args) if args.reference else None


def _check_subject(args: argparse.Namespace, suite: str) -> None:
    """One of a model and a log, and nothing that would be ignored. Raises UserError."""
    if bool(args.model) == bool(args.log):
        raise UserError(f"align eval {suite} takes either a run or model, or a log: name one, such as --log FILE.")
    measures = args.model or (args.retain and not _retain_file(args))
    ignored = [f"--{key.replace('_', '-')}" for key in _OF_MODELS if getattr(args, key, None) and not measures]
    if ignored:
        raise UserError(f"A log was measured already, and {ignored[0]} says how to measure a model: leave it out.")
    check_out(args.out)
    check_limit(args.limit)
    if args.out and args.log and Path(args.out).resolve() == Path(args.log).resolve():
        raise UserError(f"--out {args.out} would overwrite the log that is read: name another file.")


def _retain_file(args: argparse.Namespace) -> str | None:
    """The retain model's log, if it is a log that was named."""
    if args.retain_log:
        return str(args.retain_log)
    named = args.retain and (Path(args.retain).is_file() or args.retain.endswith((".json", ".json.gz")))
    return str(args.retain) if named else None


def _report(args: argparse.Namespace, result: Any, log: TofuLog | MuseLog, retain_file: str | None) -> int:
    if int(os.environ.get("RANK", "0")):  # every process has the result; the first one says it
        return Exit.OK
    if args.out:
        text = json.dumps(log.to_json()).encode("utf-8")
        write_atomically(Path(args.out), gzip.compress(text, mtime=0) if args.out.endswith(".gz") else text)
    if args.json:
        print(json.dumps({**result.to_json(), "file": args.log or args.out, "retain_file": retain_file}, indent=1))
    else:
        echo("\n".join(result.lines()))
    return Exit.OK


_LIMIT = argument("--limit", metavar="N", type=int, help="ask only N rows of each set: a trial, no result")
_SUBJECT = (
    path("model", metavar="RUN_OR_MODEL", nargs="?", help="a run, a folder of a model or a Hub id"),
    path("--log", metavar="FILE", help="score the items of this log in place of a model"),
    one_of(
        path("--retain", metavar="MODEL_OR_LOG", help="a model that never saw the forget set, or its log"),
        path("--retain-log", metavar="FILE", help="the log of such a model"),
    ),
    argument("--system", metavar="TEXT", help="a system message put before every conversation"),
    TEMPLATE_ARGUMENT,
    path("--reference", metavar="MODEL", help="a model to compare membership scores with: mia_reference"),
    _LIMIT,
    flag("--gradnorm", "also mia_gradnorm, at a backward pass for each row"),
    path("--out", metavar="FILE", help="write the log of all items, in open-unlearning's layout"),
)
_TOFU = (
    *_SUBJECT,
    argument("--split", metavar="NAME", help="the forget split: the run's, else forget10"),
    path("--source", metavar="DATA", help="the run's, a folder, a Hub id or world; else locuslab/TOFU"),
    argument("--rows", choices=("all", "legacy300"), help="the run's, else all rows"),
    argument(
        "--truth-ratio", choices=("geometric", "arithmetic"), default="geometric", help="mean over the wrong answers"
    ),
    argument(
        "--question",
        choices=("question", "paraphrased_question", "alias_question", "two_hop_question"),
        help="which column is asked, the question by default",
    ),
    ALLOW_CODE,
)
EVAL = Verb(
    "eval",
    "measure a model, score a log, or compare two models",
    (
        "align eval tofu runs/npo --split forget10 --retain runs/retain90",
        "align eval tofu --log TOFU_EVAL.json --retain-log retain90/TOFU_EVAL.json --json",
        "align eval runs/npo --suite tofu-forget10 utility",
    ),
    of="SUITE",
    verbs=(
        Verb(
            "tofu",
            "what is forgotten of TOFU's people, and what it cost",
            (
                "align eval tofu runs/npo --split forget10 --retain runs/retain90 --out runs/npo/TOFU_EVAL.json",
                "align eval tofu --log TOFU_EVAL.json --retain-log retain90/TOFU_EVAL.json --json",
            ),
            run_tofu,
            _TOFU,
            usage="align eval tofu [RUN_OR_MODEL] [options]",
        ),
        Verb(
            "muse",
            "what is forgotten of MUSE's texts, and what it cost",
            (
                "align eval muse runs/npo --source muse-bench/MUSE-News --retain retrained",
                "align eval muse --log MUSE_EVAL.json --retain-log retrain/MUSE_EVAL.json",
            ),
            run_muse,
            (*_SUBJECT, path("--source", metavar="DATA", help="a folder of MUSE's files or a Hub id")),
        ),
        RELEARN,
        ALPACA,
        PAIRWISE,
        SUITE,
    ),
)
