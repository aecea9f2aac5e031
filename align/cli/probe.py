"""``align probe``: what a reward model's scores depend on. The work is imported only when called."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.cli.sample import source_of
from align.cli.verbs import Verb, argument, check_limit, check_out, flag, one_of, path
from align.errors import Exit, UserError
from align.runs.files import write_atomically
from align.runs.quiet import calm
from align.runs.terminal import echo

if TYPE_CHECKING:
    from align.judges.judge import Judging, ScoreJudge

# for every probe
JUDGE = (
    path("model", metavar="RM", nargs="?", help="a reward model: a run, a folder or a Hub id"),
    argument("--function", metavar="MODULE:NAME", help="in its place, a function of (prompts, responses)"),
    flag("--allow-code", "run that function"),
    argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="type of its weights"),
    path("--fusion", metavar="FILE", help="average scores with those of similar preferred answers of these rows"),
    path("--fusion-encoder", metavar="NAME", help="a sentence encoder that finds them; by default shared words do"),
)

# for those that can also ask a judge of two answers
PAIR = path("--pair", metavar="MODEL", help="in its place, a pair model, which names the better of two answers")


def load(args: argparse.Namespace) -> ScoreJudge:
    """The judge that gives scores, of those that ``load_any`` loads. Raises UserError where it compares answers."""
    judge = load_any(args)
    from align.judges.judge import ScoreJudge

    if not isinstance(judge, ScoreJudge):
        raise UserError(
            f"--function {args.function}: it compares two answers (a, b), but this probe needs a score for each: write "
            "a function of (prompts, responses)."
        )
    return judge


def load_any(args: argparse.Namespace, pair: str | None = None) -> Judging:
    """The reward model, pair model or function that a probe's arguments name, with RewardFusion where they ask for it.

    ``pair`` is the pair model, where the probe can ask one.
    """
    if sum(map(bool, (args.model, args.function, pair))) != 1:
        raise UserError(
            "A probe asks one judge: name RM, --function MODULE:NAME or, for stability and benchmark, --pair MODEL."
        )
    if args.fusion_encoder and not args.fusion:
        raise UserError("--fusion-encoder finds similar answers, and --fusion names none: give both, or neither.")
    calm()
    from align.judges.loading import load_judge
    from align.recipe.sampling import Fusion, Judge
    from align.recipe.sections import Source
    from align.runs.memory import usual_device

    fusion = Fusion(corpus=Source(path=args.fusion), encoder=args.fusion_encoder) if args.fusion else None
    settings = Judge(reward=args.model, pair=pair, function=args.function, dtype=args.dtype, fusion=fusion)
    return load_judge(settings, base=Path.cwd(), allow_code=args.allow_code, device=usual_device(), say=say_of(args))


def say_of(args: argparse.Namespace) -> Callable[[str], Any]:
    """What prints a sentence; with ``--json`` standard output is kept for the JSON."""
    return partial(echo, file=sys.stderr if args.json else sys.stdout)


def _deliver(args: argparse.Namespace, result: Any, written: dict[str, Any]) -> int:
    """Print a result, and write what ``--out`` asks for."""
    if args.out:
        write_atomically(Path(args.out), json.dumps(written, indent=1) + "\n")
    echo(json.dumps(result.to_json(), indent=1) if args.json else "\n".join(["", *result.lines()]))
    return Exit.OK


def run_consistency(args: argparse.Namespace) -> int:
    """``align probe consistency``."""
    _check_consistency(args)
    judge = load(args)
    from align.eval.consistency import probe
    from align.eval.contrast import Form, read_pairs, save
    from align.eval.contrast_build import build_pairs

    form = Form.of(getattr(judge, "tokenizer", None), args.template)
    if args.pairs:
        contrasts = read_pairs(Path(args.pairs), form, args.response)
    else:
        columns = dict(_column(text) for text in args.column or ())
        contrasts = build_pairs(
            source_of(args.preferences, columns=columns),
            form,
            encoder=args.encoder,
            band=tuple(args.band or (0.75, 0.9)),
            not_in=source_of(args.not_in, columns=columns) if args.not_in else None,
            say=say_of(args),
        )
    if args.save_pairs:
        save(contrasts.pairs, Path(args.save_pairs))
    result = probe(judge, contrasts, say_of(args))
    return _deliver(args, result, result.log())


def _check_consistency(args: argparse.Namespace) -> None:
    """One set of pairs, and nothing that would be ignored. Raises UserError."""
    if bool(args.pairs) == bool(args.preferences):
        raise UserError("align probe consistency needs one set: --pairs FILE, or --from FILE to build it.")
    ignored = ("encoder", "band", "not_in", "column", "save_pairs") if args.pairs else ("response",)
    if given := [f"--{name.replace('_', '-')}" for name in ignored if getattr(args, name)]:
        raise UserError(f"{given[0]} has no effect with {'--pairs' if args.pairs else '--from'}: leave it out.")
    check_out(args.out)
    check_out(args.save_pairs, "--save-pairs")


def _column(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (ours and equals and theirs):
        raise UserError(f"--column {text}: expected OURS=THEIRS, as in chosen=response_j.")
    return ours, theirs


_CONSISTENCY = (
    *JUDGE,
    one_of(
        path(
            "--pairs",
            metavar="FILE",
            help="contrast pairs in the released layout, or as instruction_j, response_j and k",
        ),
        path(
            "--from",
            dest="preferences",
            metavar="DATA",
            help="build them from preferences: a file, folder or Hub id",
        ),
    ),
    argument("--response", choices=("j", "k"), help="which answers of the released layout, j by default"),
    argument("--template", metavar="TEXT", help="such as 'Please paraphrase: {instruction}'; may end with {response}"),
    path("--encoder", metavar="NAME", help="with --from: a sentence encoder, else shared words count"),
    argument("--band", nargs=2, type=float, metavar=("LOW", "HIGH"), help="with --from: cosines, 0.75 0.9 by default"),
    path("--not-in", metavar="DATA", help="with --from: leave out instructions of these (training) rows"),
    argument("--column", metavar="OURS=THEIRS", action="append", help="with --from: such as chosen=response_j"),
    path("--save-pairs", metavar="FILE", help="with --from: write the pairs as JSON lines, for --pairs"),
    path("--out", metavar="FILE", help="write the result with every pair's scores as JSON"),
)


def run_stability(args: argparse.Namespace) -> int:
    """``align probe stability``."""
    if args.rows is not None and args.rows < 1:
        raise UserError(f"--rows: must be at least 1, got {args.rows}.")
    check_out(args.out)
    from align.eval.stability import measure, measure_order, read_pairs
    from align.judges.judge import CompareJudge

    say = say_of(args)
    pairs = read_pairs(args.pairs, args.rows, args.seed, say)  # before the weights, which take longer
    judge = load_any(args, args.pair)
    found: Any
    if isinstance(judge, CompareJudge):
        found = measure_order(pairs, judge, args.seed, say)
    else:
        found = measure(pairs, judge, args.seed, say)
    return _deliver(args, found, found.to_json())


_STABILITY = (
    *JUDGE,
    PAIR,
    path("--pairs", metavar="FILE", required=True, help="preference pairs: any file or folder that align reads"),
    argument("--rows", metavar="N", type=int, help="only N pairs, drawn by the seed"),
    argument("--seed", metavar="SEED", type=int, default=0, help="which pairs, and what is rewritten; 0 by default"),
    path("--out", metavar="FILE", help="write the result as JSON"),
)


def run_benchmark(args: argparse.Namespace) -> int:
    """``align probe benchmark``."""
    check_out(args.out)
    check_limit(args.limit)
    from align.data.rows.questions import talks
    from align.eval.reward_bench import measure
    from align.eval.reward_bench_rows import TITLES, load_benchmark

    kind, items, notes = load_benchmark(args.data, args.kind, args.limit)  # first, since it is read in a moment
    say_of(args)(f"{args.data}: {TITLES[kind]}, {len(items):,} row{'s' * (len(items) != 1)}")
    judge = load_any(args, args.pair)
    tokenizer: Any = getattr(judge, "tokenizer", None)
    conversational = tokenizer is not None and talks(tokenizer)
    result = measure(judge, kind, items, conversational=conversational, notes=notes, limit=args.limit)
    return _deliver(args, result, result.to_json())


_BENCHMARK = (
    *JUDGE,
    PAIR,
    path("--data", metavar="DATA", required=True, help="the benchmark: a file (jsonl, json, parquet, csv) or a folder"),
    argument(
        "--kind",
        choices=("rm_bench", "rewardbench", "rewardbench2", "m_rewardbench"),
        help="which one it is, where its columns do not tell",
    ),
    argument("--limit", metavar="N", type=int, help="ask only N rows of each subset: a trial, no result"),
    path("--out", metavar="FILE", help="write the result as JSON"),
)


PROBE = Verb(
    "probe",
    "ask what a reward model's scores depend on",
    (
        "align probe consistency runs/reward --pairs para_contrast.json.gz",
        "align probe stability runs/reward --pairs held_out.jsonl",
        "align probe benchmark runs/reward --data RM-Bench/total_dataset.json",
    ),
    verbs=(
        Verb(
            "consistency",
            "whether a reward model reads the instruction: C_res and C_ins on contrast pairs",
            (
                "align probe consistency runs/reward --pairs para_contrast.json.gz --json",
                "align probe consistency some/reward-model --from held_out.jsonl --not-in train.jsonl",
                "align probe consistency --function rewards:overlap --allow-code --pairs pairs.jsonl",
            ),
            run_consistency,
            _CONSISTENCY,
            usage="align probe consistency RM (--pairs FILE | --from DATA) [options]",
        ),
        Verb(
            "stability",
            "whether its order of two answers survives changes that should not matter",
            ("align probe stability runs/reward --pairs held_out.jsonl --rows 200",),
            run_stability,
            _STABILITY,
        ),
        Verb(
            "benchmark",
            "RM-Bench, RewardBench 1 and 2 or M-RewardBench, beside the longest and the shortest answer",
            (
                "align probe benchmark runs/reward --data RM-Bench/total_dataset.json",
                "align probe benchmark some/reward-model --data reward-bench-2 --limit 20 --json",
            ),
            run_benchmark,
            _BENCHMARK,
        ),
    ),
    of="PROBE",
)
