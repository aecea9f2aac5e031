"""The plan with which a training begins: said, kept, and compared with what came of it at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from align.compat import loaded_whole
from align.data.load import Data
from align.errors import DoesNotFit, told
from align.plan.changes import changes
from align.plan.device import here
from align.plan.plan import FILE, Plan, launched, plan_of
from align.plan.show import line, refusal
from align.plan.speed import remember, shape_of
from align.recipe import Recipe
from align.runs.directory import RunDirectory
from align.runs.memory import memory
from align.runs.processes import World

_SHORT = 5.0  # seconds; the rate of a shorter training says nothing


class Planned(NamedTuple):
    """A plan, and the bytes that the process held when it was made; None for both where there is no plan."""

    plan: Plan | None = None
    held: int = 0


def planned(
    recipe: Recipe, args: Any, data: Data, directory: RunDirectory, anyway: bool, say: Callable[[str], Any]
) -> Planned:
    """Plan a run whose rows are prepared, before its weights are loaded. Every process calls it; the first one plans.

    Where none can be made that is said, and the run goes on without; nor is there one on other processes.

    Raises:
        DoesNotFit: on all processes, where it is clearly too large and ``anyway`` is not set.
    """
    world = World.of(args)
    found, problem = Planned(), None
    if world.rank == 0:
        try:
            # this process plans alone: the model that it looks at is not made by all of them, as ZeRO-3's others are
            with loaded_whole():
                plan = plan_of(recipe, data, launched(args), here(args.device), args)
        except Exception as error:  # a plan is a help, and what is wrong with the run itself is met and said by the run
            say(f"plan: none ({told(error)})")
        else:
            found = Planned(plan, memory(args.device).held)
            directory.write_json(FILE, plan.to_json())
            say(line(plan))
            if plan.cannot and not anyway:
                with loaded_whole():
                    problem = refusal(plan, changes(recipe, data, plan))
    problem = world.shared(problem)
    if problem is not None:
        refused = DoesNotFit(problem)
        refused.shared = True
        raise refused
    return found


def compared(recipe: Recipe, found: Planned, cost: Mapping[str, Any]) -> dict[str, Any]:
    """What was planned beside what was measured, for ``cost`` in the run's facts; the rate is kept for later plans.

    Of an accelerator tensors are compared; of a CPU, what the process grew by since the plan was made.
    """
    plan = found.plan
    if plan is None or "since_step" in cost:  # what came before a resume is not known
        return {}
    on_cpu = plan.device.kind == "cpu"
    total, seconds = plan.memory.total, cost["probes"]["training_seconds"]
    if seconds >= _SHORT and cost["steps"] == plan.batches.steps:
        shape = shape_of(plan.memory, recipe.model.lora is not None, plan.launch)
        remember(plan.device.name, shape, plan.time.flops / seconds / plan.launch.processes)
    return {
        "planned": {
            "memory_bytes": total if on_cpu else total - plan.memory.parts["context and fragmentation"],
            "measured_memory_bytes": cost["peak_memory_bytes"] - (found.held if on_cpu else 0),
            "seconds": plan.time.seconds,
            "measured_seconds": round(seconds, 3),
            "steps": plan.batches.steps,
            "measured_steps": cost["steps"],
        }
    }
