"""``align sample`` and ``align show``: their parsers, and a function for each. The work is imported when called."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from align.cli.verbs import TEMPLATE_ARGUMENT, Verb, argument, flag, one_of, path, template_arguments
from align.errors import Exit, UserError
from align.runs.quiet import calm
from align.runs.terminal import echo

_JUDGES = "reward:MODEL, pair:MODEL, endpoint:URL#MODEL or function:MODULE:NAME"
_KEEPS = "all, best, pair, top:K or above:X"
# options of the command line by the keys of a recipe that they set
_OPTIONS = {"samples": "--n", "rows": "--limit", **dict.fromkeys(("reward", "pair", "function"), "--judge")}


def _sample(args: argparse.Namespace) -> int:
    keep, amount = _keep(args.keep or ("best" if args.judge else "all"))
    judge, source, sampling = judge_of(args.judge), _source(args), _sampling(args)
    if args.length_penalty < 0:
        raise UserError(f"--length-penalty: must be at least 0, got {args.length_penalty:g}.")
    calm()
    from align.sampling.best_of import Job, sample
    from align.sampling.parts import manifest

    out = Path(args.out)
    args.begun = manifest(out)

    job = Job(
        source=source,
        model=args.model,
        out=out,
        sampling=sampling,
        judge=judge,
        keep=keep,
        amount=amount,
        length_penalty=args.length_penalty,
        seed=args.seed,
        dtype=args.dtype,
        template_arguments=template_arguments(args),
        allow_code=args.allow_code,
    )
    result = sample(job, resume=args.resume, say=partial(echo, file=sys.stderr if args.json else sys.stdout))
    if result is not None:
        text = json.dumps(result.to_json(), indent=1) if args.json else "\n".join(result.lines())
        echo(text)
    return Exit.OK


def _show_run(args: argparse.Namespace) -> int:
    from align.cli.overview import overview

    found = overview(args.directory)
    echo(json.dumps(found.to_json(), indent=1) if args.json else "\n".join(found.lines()))
    return Exit.OK


def _show_samples(args: argparse.Namespace) -> int:
    if args.n < 1:
        raise UserError(f"--n: must be at least 1, got {args.n}.")
    from align.sampling.show import samples

    order: Any = "best" if args.best else "worst" if args.worst else "first"
    found = samples(args.directory, round=args.round, step=args.step, row=args.row, count=args.n, order=order)
    if args.json:
        sys.stdout.write(f"{json.dumps(found.to_json(), indent=1)}\n")
        return Exit.OK
    from rich.console import Console

    found.print(Console(file=sys.stdout, highlight=False))
    return Exit.OK


# ---- what the command line says, as settings


def _keep(text: str) -> tuple[Any, float | None]:
    """``best`` or ``top:4`` as a name and an amount. Raises UserError."""
    name, colon, amount = text.partition(":")
    plain, with_amount = ("all", "best", "pair"), {"top": int, "above": float}
    if name in plain and not colon:
        return name, None
    if name not in with_amount:
        raise UserError(f"--keep {text}: expected {_KEEPS}.")
    try:
        value = with_amount[name](amount)
    except ValueError:
        what = "a whole number, as in top:2" if name == "top" else "a number, as in above:0.5"
        raise UserError(f"--keep {text}: {name} takes {what}.") from None
    return name, value


def judge_of(spec: str | None, **limits: Any) -> Any:
    """The settings of a judge from ``reward:MODEL`` and the like. Raises UserError.

    ``limits`` are keys of an endpoint; those that are None are left as they are.
    """
    given = {key: value for key, value in limits.items() if value is not None}
    kind, _, rest = (spec or "").partition(":")
    if given and kind != "endpoint":
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise UserError(f"{option} is about a server, and none is asked: give --judge endpoint:URL#MODEL.")
    if spec is None:
        return None
    from align.recipe.sampling import Endpoint, Judge

    if kind not in ("reward", "pair", "endpoint", "function") or not rest:
        raise UserError(f"--judge {spec}: expected {_JUDGES}.")
    if kind != "endpoint":
        return _made(Judge, **{kind: rest})
    url, _, model = rest.rpartition("#")
    if not url or not model:
        raise UserError(f"--judge {spec}: expected endpoint:URL#MODEL, as in endpoint:http://localhost:8000/v1#judge.")
    return Judge(endpoint=_made(Endpoint, url=url, model=model, **given))


def _source(args: argparse.Namespace) -> Any:
    return source_of(args.file, system=args.system, rows=args.limit, split=args.split, subset=args.subset)


def source_of(name: str, **keys: Any) -> Any:
    """A source of rows with further keys: the generated world, what exists here, or a Hub id. Raises UserError."""
    from align.data.rows.files import file_kind
    from align.recipe.sections import Source

    kind, _, rest = name.partition(":")
    if kind == "world" and not Path(name).exists():
        world, _, seed = rest.partition(":")
        if not world or (seed and not seed.isdecimal()):
            raise UserError(f"{name}: expected world:KIND or world:KIND:SEED, as in world:forget:0.")
        return _made(Source, world={"kind": world, "seed": int(seed or 0)}, **keys)
    on_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if on_hub and not Path(name).exists() and file_kind(Path(name)) is None:
        return _made(Source, id=name, **keys)
    return _made(Source, path=name, **keys)


def _sampling(args: argparse.Namespace) -> Any:
    from align.recipe.sampling import Sampling, Server

    return _made(
        Sampling,
        samples=args.n,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        stop=args.stop,
        batch_size=args.batch_size,
        server=_made(Server, url=args.server) if args.server is not None else None,
    )


def _made(section: Any, **values: Any) -> Any:
    """A section of recipes from options. Raises UserError that names the option."""
    from pydantic import ValidationError

    from align.recipe.messages import sentence

    try:
        return section(**values)
    except ValidationError as error:
        entry = error.errors(include_url=False)[0]
        key = str(entry["loc"][0])
        option = _OPTIONS.get(key, "--" + key.replace("_", "-"))
        raise UserError(f"{option}: {sentence(entry)}") from None


SAMPLE = Verb(
    "sample",
    "draw completions of prompts and keep the best as a data set",
    (
        "align sample prompts.jsonl --model runs/dpo --n 16 --judge reward:some/reward-model --keep best",
        "align sample prompts.jsonl --model runs/dpo --n 8 --judge pair:some/pair-model --keep pair --out pairs.jsonl",
        "align sample world:forget --model runs/quickstart-dpo --n 4 --judge function:rewards:short --allow-code",
    ),
    _sample,
    (
        path("file", metavar="FILE", help="a data file, a Hub id, or world:KIND[:SEED]"),
        path("--model", metavar="MODEL", required=True, help="a run, a folder of a model or a Hub id"),
        argument("--n", metavar="N", type=int, default=4, help="completions of each prompt, 4 by default"),
        argument("--judge", metavar="SPEC", help="reward:M, pair:M, endpoint:URL#M, function:MOD:F"),
        argument("--keep", metavar="WHAT", help=_KEEPS),
        path("--out", metavar="FILE", default="samples.jsonl", help="samples.jsonl by default; or a .parquet"),
        argument("--max-new-tokens", metavar="N", type=int, default=256, help="most of a completion, 256 by default"),
        argument("--temperature", metavar="T", type=float, default=1.0, help="logits are divided by it, 1 by default"),
        argument("--top-p", metavar="P", type=float, default=1.0, help="only the likeliest tokens of this mass"),
        argument("--top-k", metavar="K", type=int, help="only so many likeliest tokens"),
        argument("--min-p", metavar="P", type=float, help="no token below this share of the likeliest's"),
        argument(
            "--stop", metavar="TEXT", action="append", default=[], help="a completion ends before it; may be repeated"
        ),
        argument("--length-penalty", metavar="X", type=float, default=0.0, help="off a score per log of characters"),
        argument("--seed", metavar="SEED", type=int, default=0, help="of all draws, 0 by default"),
        argument("--batch-size", metavar="N", type=int, help="completions drawn at a time, else what memory holds"),
        argument("--limit", metavar="N", type=int, help="only the first N prompts"),
        argument("--subset", metavar="NAME", help="configuration of a Hub data set"),
        argument("--split", metavar="NAME", default="train", help="split, train by default; slices work"),
        argument("--system", metavar="TEXT", help="a system message before every conversation"),
        TEMPLATE_ARGUMENT,
        argument("--server", metavar="URL", help="let a server draw that serves the model"),
        argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="type of the weights"),
        flag("--allow-code", "run the Python function that judges"),
        flag("--resume", "go on with a call that was interrupted"),
    ),
    usage="align sample FILE --model MODEL [options]",
)
SHOW = Verb(
    "show",
    "print what a run is, how far it came, or what it drew",
    ("align show runs/dpo", "align show samples runs/hypo", "align show samples runs/inpo --round 2 --worst"),
    of="WHAT",
    usage="align show RUN [--json] | align show samples RUN [options]",
    verbs=(
        Verb(
            "run",
            "what it is and how far it came: align show RUN says the same",
            ("align show runs/dpo", "align show run runs/npo --json"),
            _show_run,
            (path("directory", metavar="RUN", help="a run's directory"),),
        ),
        Verb(
            "samples",
            "print completions that a run drew",
            (
                "align show samples runs/hypo --step 40 --n 3",
                "align show samples runs/inpo --round 2 --best",
                "align show samples runs/superhf --row 17 --json",
            ),
            _show_samples,
            (
                path("directory", metavar="RUN", help="a run's directory"),
                one_of(
                    argument("--round", metavar="N", type=int, help="of this round, by default the last"),
                    argument("--step", metavar="S", type=int, help="of this optimizer step, by default the last"),
                ),
                argument("--row", metavar="R", type=int, help="that answer this row of the prompts"),
                argument("--n", metavar="N", type=int, default=5, help="so many prompts; with best and worst, samples"),
                one_of(flag("--best", "those of the highest scores"), flag("--worst", "those of the lowest scores")),
            ),
        ),
    ),
)
