"""Which launcher configuration a run fits on: arithmetic over what a run keeps and what a machine has, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from align.errors import DoesNotFit, UserError
from align.runs.memory import amount

ROOM = 0.7  # share of a device for what stays in every step; the rest is for activations and gathered layers


@dataclass(frozen=True)
class Size:
    """What a run keeps in memory from step to step, in one process that shares nothing out.

    Attributes:
        weights: all of the policy's, in the type that they are kept in.
        trained: those of them that are trained; gradients take as much again, and Adam's two means twice as much.
        reference: of a frozen copy of the policy; 0 where there is none.
        divisible: whether the weights can be shared out, which quantised ones cannot.
    """

    weights: int
    trained: int
    reference: int = 0
    divisible: bool = True

    @property
    def stays(self) -> int:
        return self.weights + 3 * self.trained + self.reference


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


def place(size: Size, machine: Machine, processes: int | None = None) -> Placement:
    """The simplest configuration that a run fits on: whole copies (DDP), shares (FSDP2), shares on the host (ZeRO-3).

    Args:
        processes: how many there shall be; by default one for each accelerator, and one on a CPU.

    Raises:
        UserError: where there are fewer accelerators than processes.
        DoesNotFit: where no configuration has room, with the numbers.
    """
    if not machine.devices:
        return _on_cpu(size, machine, processes or 1)
    count = processes or len(machine.devices)
    if count > len(machine.devices):
        raise UserError(f"--processes {count}: this machine has {_gpus(len(machine.devices))}, one for each process.")
    device = min(machine.devices[:count])
    there = f"{_gpus(count)} of {amount(device)}"
    if size.stays <= ROOM * device:
        return Placement("ddp", count, f"{amount(size.stays)} stay on each of {there}")
    share = size.stays // count
    if count > 1 and size.divisible and share <= ROOM * device:
        why = f"{amount(size.stays)} are too much for each of {there}, and shared out they are {amount(share)}"
        return Placement("fsdp2", count, why)
    if machine.deepspeed and size.divisible and size.stays <= ROOM * machine.host:
        why = f"{amount(size.stays)} are too much for {there}, and the host has {amount(machine.host)} for them"
        return Placement("zero3-offload", count, why)
    raise DoesNotFit(
        f"This run keeps {amount(size.stays)} of weights, gradients, optimizer and reference, which {there} have no "
        f"room for ({ROOM:.0%} of the memory, since activations need the rest), shared out or not, nor has the host "
        f"({amount(machine.host)}). {_cures(size)}"
    )


def _on_cpu(size: Size, machine: Machine, processes: int) -> Placement:
    if processes * size.stays > ROOM * machine.host:
        raise DoesNotFit(
            f"There is no accelerator, and this run keeps {amount(size.stays)} of weights, gradients, optimizer and "
            f"reference in each of {_many(processes, 'process', 'processes')}; the machine has {amount(machine.host)}. "
            + _cures(size)
        )
    if processes == 1:
        return Placement("cpu1", 1, "there is no accelerator, and one process uses all cores")
    return Placement("cpu2-ddp", processes, "there is no accelerator, and several processes were asked for")


def _cures(size: Size) -> str:
    adapter = "" if size.trained < size.weights / 2 else "Train an adapter (model.lora: {}), take "
    return f"{adapter or 'Take '}a smaller model, or more accelerators."


def _gpus(count: int) -> str:
    return _many(count, "GPU", "GPUs")


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
