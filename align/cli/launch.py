"""`align launch`: a recipe over several processes, under the launcher configuration that is named or that fits."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from align.cli.verbs import ALLOW_CODE, RECIPE, RESUME, Verb, argument, flag, path
from align.errors import UserError

if TYPE_CHECKING:
    from align.recipe import Recipe
    from align.runs.launcher import Configuration
    from align.runs.placement import Placement


def _launch(args: argparse.Namespace) -> int:
    from align.recipe import load_recipe
    from align.runs.launcher import command, configuration, run
    from align.runs.models import require_model

    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: expected a whole number of 1 or more.")
    recipe = load_recipe(args.file, args.overrides, allow_code=args.allow_code)
    if not (args.on and args.dry_run):  # a command that is only shown may be for a machine that has the model
        require_model(recipe.model, recipe.base)
    placed = None if args.on else _place(recipe, args.processes)
    chosen = configuration(placed.name if placed else args.on)
    processes = placed.processes if placed else _count(chosen, args)
    flags = [word for word, given in (("--resume", args.resume), ("--allow-code", args.allow_code)) if given]
    found = command(chosen, processes, [args.file, *args.overrides, *flags])
    if not args.json:
        print(*([f"{placed.name}: {placed.reason}"] if placed else []), found.line(), sep="\n", flush=True)
    here = ["--on", chosen.name, "--processes", str(processes)]
    started = ["align", "launch", args.file, *args.overrides, *here, *flags]
    out = sys.stderr if args.json else None
    code = 0 if args.dry_run else run(found, recipe.output_dir, started, stdout=out)
    if args.json:
        print(json.dumps({"on": chosen.name, "processes": processes, "command": found.line(), "exit_code": code}))
    return code


def _place(recipe: Recipe, processes: int | None) -> Placement:
    """The configuration that fits, by the model's structure and this machine. Imports torch."""
    import torch

    from align.models.size import training_size
    from align.runs.memory import accelerators, memory
    from align.runs.placement import Machine, place
    from align.runs.quiet import without_device_notice
    from align.versions import installed

    without_device_notice()
    devices = () if recipe.train.get("use_cpu") is True else accelerators()
    host = memory(torch.device("cpu")).total
    return place(training_size(recipe), Machine(devices, host, installed("deepspeed") is not None), processes)


def _count(chosen: Configuration, args: argparse.Namespace) -> int:
    """The number of processes; a command that is only shown may be for another machine."""
    from align.runs.memory import accelerators

    shown = args.processes if args.dry_run else None
    return chosen.count(args.processes, 0 if chosen.on_cpu else shown or len(accelerators()))


LAUNCH = Verb(
    "launch",
    "run one recipe over several processes, as accelerate launch does",
    (
        "align launch my.yaml",
        "align launch preference/dpo-zephyr-7b --on zero3 --processes 8",
        "align launch my.yaml --on cpu2-fsdp2 train.max_steps=3 --dry-run",
    ),
    _launch,
    (
        *RECIPE,
        path("--on", metavar="NAME", help="a configuration of recipes/accelerate, or a file; by default what fits"),
        argument("--processes", metavar="N", type=int, help="by default one for each accelerator"),
        RESUME,
        ALLOW_CODE,
        flag("--dry-run", "print the command and start nothing"),
    ),
)
