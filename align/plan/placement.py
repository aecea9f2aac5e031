"""Which launcher configuration a run fits on: a choice over what a plan says of each, and what a machine has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from align.errors import DoesNotFit, UserError
from align.plan.shares import BOTH, Launch
from align.runs.memory import amount


class Need(NamedTuple):
    """Bytes that a launch takes: on each process's device, and on the host."""

    device: int
    host: int = 0


@dataclass(frozen=True)
class Machine:
    """What there is: the memory of each accelerator, that of the host, and whether DeepSpeed can be used."""

    devices: tuple[int, ...]
    host: int
    deepspeed: bool


class Placement(NamedTuple):
    """A configuration of recipes/accelerate by name, the number of processes, and why."""

    name: str
    processes: int
    reason: str


def place(need: Callable[[Launch], Need], machine: Machine, processes: int | None = None) -> Placement:
    """The simplest configuration that a run fits on: whole copies (DDP), shares (FSDP2), shares on the host (ZeRO-3).

    On a CPU it is one process unless more are asked for; whether that fits, the run says before it loads anything.

    Args:
        need: what a launch takes; only asked of those that come into question.
        processes: how many there shall be; by default one for each accelerator.

    Raises:
        UserError: where there are fewer accelerators than processes.
        DoesNotFit: where no configuration has room, with the numbers.
    """
    if not machine.devices:
        if (processes or 1) == 1:
            return Placement("cpu1", 1, "there is no accelerator, and one process uses all cores")
        return Placement("cpu2-ddp", processes or 1, "there is no accelerator, and several processes were asked for")
    count = processes or len(machine.devices)
    if count > len(machine.devices):
        raise UserError(f"--processes {count}: this machine has {_gpus(len(machine.devices))}, one for each process.")
    device = min(machine.devices[:count])
    tried: list[str] = []
    for launch in _candidates(count, machine.deepspeed):
        name, takes = launch.name, need(launch)
        on_host = f" and {amount(takes.host)} on the host" if takes.host else ""
        if takes.device <= device and takes.host <= machine.host:
            before = f" ({'; '.join(tried)})" if tried else ""
            each = f"{amount(takes.device)} on each of {_gpus(count)} of {amount(device)}"
            return Placement(name, count, f"it takes {each}{on_host}{before}")
        tried.append(f"{name} would take {amount(takes.device)}{on_host}")
    raise DoesNotFit(
        f"This run does not fit on {_gpus(count)} of {amount(device)} with {amount(machine.host)} of the host: "
        f"{', '.join(tried)}. What would fit: align plan FILE."
    )


def _candidates(count: int, deepspeed: bool) -> list[Launch]:
    """Configurations and what they do, the simplest first."""
    found = [Launch("ddp", count, "ddp")]
    if count > 1:
        found.append(Launch("fsdp2", count, "fsdp2"))
    return [*found, Launch("zero3-offload", count, "zero3", BOTH)] if deepspeed else found


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
