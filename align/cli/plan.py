"""`align plan`: whether a recipe fits, how long it takes and what it writes, before a weight is loaded."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from align.cli.verbs import ALLOW_CODE, RECIPE, Verb, argument, path
from align.errors import Exit, UserError

if TYPE_CHECKING:
    from align.data.load import Data
    from align.plan.device import Device
    from align.plan.placement import Placement
    from align.plan.shares import Launch
    from align.recipe import Recipe


def _plan(args: argparse.Namespace) -> int:
    from align.recipe import load_recipe
    from align.runs.models import require_model

    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: expected a whole number of 1 or more.")
    recipe = load_recipe(args.file, args.overrides, allow_code=args.allow_code)
    require_model(recipe.model, recipe.base)
    from align.plan.changes import changes
    from align.plan.longest import with_steps
    from align.plan.plan import plan_of
    from align.plan.show import cures, table
    from align.runs.quiet import quieten

    quieten(True)
    device = _device(recipe, args.device)
    pairs = None
    if recipe.rounds is None:
        data, said = prepared(recipe)
    else:
        data, said, pairs = _one_round(recipe)
    launch = _launch(recipe, data, args, device)
    if pairs is not None:
        recipe = with_steps(recipe, pairs, launch.processes)
    plan = plan_of(recipe, data, launch, device)
    found = [] if plan.fits else changes(recipe, data, plan)
    if args.json:
        cure = [{"change": one.text, "total": one.plan.memory.total, "fits": one.plan.fits} for one in found]
        print(json.dumps({**plan.to_json(), "rows_said": said, "changes": cure}))
    else:
        print(*table(plan, said), *([] if plan.fits else ["", *cures(found)]), sep="\n")
    return Exit.OK if plan.fits else Exit.DOES_NOT_FIT


def prepared(recipe: Recipe) -> tuple[Data, list[str]]:
    """The recipe's rows as a run prepares them, and what became of those that were left out or cut."""
    from align.data.load import load_data
    from align.data.tokens.tokenize import load_tokenizer
    from align.recipe.template_arguments import dated

    said: list[str] = []
    tokenizer = load_tokenizer(recipe.model, base=recipe.base, arguments=dated(recipe.data.template_arguments))
    data = load_data(recipe, tokenizer, recipe.objective_value().branches, said.append)
    return data, [line.strip() for line in said]


def _one_round(recipe: Recipe) -> tuple[Data, list[str], int]:
    """Rows of the training of one round, what to say of them, and how many there are at most.

    They are pairs of samples that are still to be drawn, so each is counted as long as it may be.
    """
    from align.plan.longest import longest_rows
    from align.recipe.template_arguments import dated
    from align.rounds.prompts import prompts_of

    assert recipe.rounds is not None
    said: list[str] = []
    pairs = prompts_of(recipe, None, dated(recipe.data.template_arguments), said.append).each
    said.append(
        f"the training of one round of {recipe.rounds.count}, with at most {pairs:,} pairs; what sampling and judging "
        "take is not in it"
    )
    return longest_rows(), [line.strip() for line in said], pairs


def _device(recipe: Recipe, name: str | None) -> Device:
    """The device that is named, else this machine's."""
    import torch

    from align.plan.device import here, named
    from align.runs.memory import usual_device

    if name is not None:
        return named(name)
    return here(torch.device("cpu") if recipe.train.get("use_cpu") is True else usual_device())


def _launch(recipe: Recipe, data: Data, args: argparse.Namespace, device: Device) -> Launch:
    """The launch that is named, else what `align launch` would take here; of a device elsewhere so many processes."""
    from align.plan.plan import on
    from align.plan.shares import Launch
    from align.runs.launcher import configuration

    if args.on is not None:
        chosen = configuration(args.on)
        return on(chosen, args.processes or chosen.processes)
    if args.device is not None or device.kind == "cpu":
        count = args.processes or 1
        return Launch("ddp" if count > 1 else "one process", count, "ddp" if count > 1 else "one")
    found = placed(recipe, args.processes, data)
    chosen = configuration(found.name)
    return on(chosen, found.processes)


def placed(recipe: Recipe, processes: int | None, data: Data | None = None) -> Placement:
    """The configuration that a recipe fits on here, by its plan under each; imports torch.

    Args:
        data: its prepared rows; prepared where they are needed and not given.

    Raises:
        UserError, DoesNotFit: as ``place``.
    """
    import torch

    from align.plan.device import here, unnamed
    from align.plan.longest import longest_rows
    from align.plan.placement import Machine, Need, place
    from align.plan.plan import plan_of
    from align.runs.memory import accelerators, memory, usual_device
    from align.versions import installed

    found = () if recipe.train.get("use_cpu") is True else accelerators()
    devices = tuple(total for total, _ in found)
    rows: list[Data] = [] if data is None else [data]

    def need(launch: Launch) -> Need:
        if not rows:
            rows.append(prepared(recipe)[0] if recipe.rounds is None else longest_rows())
        # not looked at from here: this process lives as long as the run, and would keep memory of the first device
        device = unnamed(*min(found)) if found else here(usual_device())
        held = plan_of(recipe, rows[0], launch, device).memory
        return Need(held.total, held.host)

    host = memory(torch.device("cpu")).total
    return place(need, Machine(devices, host, installed("deepspeed") is not None), processes)


PLAN = Verb(
    "plan",
    "say what a recipe will hold, how long it takes and what it writes, before a weight is loaded",
    (
        "align plan my.yaml",
        "align plan preference/dpo-zephyr-7b --on fsdp2 --processes 8 --device 80GiB",
    ),
    _plan,
    (
        *RECIPE,
        path("--on", metavar="NAME", help="a launcher configuration; by default what align launch would take"),
        argument("--processes", metavar="N", type=int, help="how many processes"),
        argument("--device", metavar="WHAT", help="for a device that is not here: H100, A100-40GB, 24GiB, cpu"),
        ALLOW_CODE,
    ),
)
