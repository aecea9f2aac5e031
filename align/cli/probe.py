"""``align probe``: what a reward model's scores depend on. The work is imported only when called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from align.cli.probe_stability import ARGUMENTS as STABILITY
from align.cli.probe_stability import run_stability
from align.cli.verbs import Verb, argument, path
from align.runs.quiet import calm
from align.runs.terminal import echo

if TYPE_CHECKING:
    from align.judges.judge import ScoreJudge

# for every probe
JUDGE = (
    path("model", metavar="RM", help="a reward model: a run, a folder or a Hub id"),
    argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="type of its weights"),
)


def load(args: argparse.Namespace) -> ScoreJudge:
    """The reward model that a probe's arguments name."""
    calm()
    import torch

    from align.judges.reward import RewardModel

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    return RewardModel(args.model, dtype=args.dtype, device=device, say=say_of(args))


def say_of(args: argparse.Namespace) -> Callable[[str], Any]:
    """What prints a sentence; with ``--json`` standard output is kept for the JSON."""
    return partial(echo, file=sys.stderr if args.json else sys.stdout)


PROBE = Verb(
    "probe",
    "ask what a reward model's scores depend on",
    ("align probe stability runs/reward --pairs held_out.jsonl",),
    verbs=(
        Verb(
            "stability",
            "whether its order of two answers survives changes that should not matter",
            ("align probe stability runs/reward --pairs held_out.jsonl --rows 200",),
            run_stability,
            (*JUDGE, *STABILITY),
        ),
    ),
    of="PROBE",
)
