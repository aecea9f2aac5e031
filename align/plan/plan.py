"""A plan: what a run will hold, how long it will take and what it will write, before a weight is loaded."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from align.plan.batches import Batches, batches
from align.plan.device import Device
from align.plan.disk import Disk, disk_of
from align.plan.memory import Memory, memory_of
from align.plan.shares import Launch, deepspeed, fsdp2, launch_of
from align.plan.speed import Time, time_of
from align.plan.stored import is_stored
from align.runs.launch import fsdp_offloads, launched_with_fsdp

if TYPE_CHECKING:
    from align.data.load import Data
    from align.recipe import Recipe
    from align.runs.launcher import Configuration

FILE = "plan.json"
MARGIN = 1.15  # plans are right to 15 %: what is above so many times the room there is does not fit


@dataclass(frozen=True)
class Plan:
    """What a recipe needs on a device of each process.

    ``memory.total`` is beside what the process holds already; ``Device.room`` is what it may take.
    """

    name: str
    launch: Launch
    device: Device
    memory: Memory
    batches: Batches
    time: Time
    disk: Disk

    @property
    def fits(self) -> bool:
        return self.need <= self.device.room and self.memory.host <= host()

    @property
    def cannot(self) -> bool:
        """Whether it is clearly too much: more than the model may be wrong by."""
        return self.need > MARGIN * self.device.room or self.memory.host > MARGIN * host()

    @property
    def need(self) -> int:
        """Bytes on the device; processes of a CPU share one memory."""
        return self.memory.total * (self.launch.processes if self.device.kind == "cpu" else 1)

    def to_json(self) -> dict[str, Any]:
        """All numbers, in bytes, seconds and tokens."""
        about = self.batches
        return {
            "name": self.name,
            "fits": self.fits,
            "on": self.launch.name,
            "processes": self.launch.processes,
            "device": {"name": self.device.name, "kind": self.device.kind, "total": self.device.total},
            "room": self.device.room,
            "memory": {
                "total": self.memory.total,
                "of_tensors": self.memory.total - self.memory.parts["context and fragmentation"],
                "parts": {name: size for name, size in self.memory.parts.items() if size},
                "fullest_at": self.memory.phase,
                "phases": {name: sum(parts.values()) for name, parts in self.memory.phases.items()},
                "host": self.memory.host,
                "layers_followed": self.memory.followed,
            },
            "weights": {"all": self.memory.weights.sum("elements"), "trained": self.memory.weights.sum("trained")},
            "batches": {
                "rows": about.rows,
                "examples": about.examples,
                "micro": about.micro,
                "largest": about.tokens,
                "steps": about.steps,
                "tokens": about.positions,
                "guessed": about.guessed,
            },
            "time": self.time.to_json(),
            "disk": self.disk.to_json(),
        }


def host() -> int:
    """The memory of this machine, or what a container leaves of it."""
    from align.runs.memory import memory

    return memory(torch.device("cpu")).total


def plan_of(recipe: Recipe, data: Data, launch: Launch, device: Device, args: Any = None) -> Plan:
    """The plan of a recipe with its prepared rows.

    Args:
        args: its training arguments, made where none are given.

    Raises:
        UserError: for what ``align train`` would refuse, and a model that cannot be looked at.
    """
    args = arguments_on(recipe, device) if args is None else args
    found = batches(recipe, data, args, launch.processes)
    memory = memory_of(recipe, args, found, launch, device, stored=is_stored(recipe, data, args))
    time = time_of(recipe, args, found, memory, launch, device)
    return Plan(recipe.name, launch, device, memory, found, time, disk_of(recipe, args, memory, found))


def arguments_on(recipe: Recipe, device: Device) -> Any:
    """Training arguments as they are on a device that need not be here: bf16 is its default on an accelerator."""
    precision = {key: recipe.train[key] for key in ("bf16", "fp16") if key in recipe.train}
    elsewhere = device.kind != "cpu" and not torch.accelerator.is_available()
    if not elsewhere:
        return recipe.training_arguments(disable_tqdm=True)
    train = {key: value for key, value in recipe.train.items() if key not in precision}
    args = copy(recipe.model_copy(update={"train": {**train, "use_cpu": True}}).training_arguments(disable_tqdm=True))
    # set behind their checks, which ask for the device
    args.__dict__ |= {"bf16": precision.get("fp16") is not True, "fp16": False, **precision}
    return args


def launched(args: Any) -> Launch:
    """How this process was launched, by what accelerate left: ``args`` are the trainer's arguments."""
    processes = args.world_size
    if launched_with_fsdp():
        return fsdp2("fsdp2", processes, offloads=fsdp_offloads())
    if (plugin := args.deepspeed_plugin) is not None:
        found = deepspeed("", processes, plugin.deepspeed_config.get("zero_optimization") or {})
        return replace(found, name=f"{found.kind}-offload" if found.offloaded else found.kind)
    return Launch("ddp", processes, "ddp") if processes > 1 else Launch("one process", 1, "one")


def on(chosen: Configuration, processes: int) -> Launch:
    """A launch under a configuration of accelerate. Raises UserError where its DeepSpeed file cannot be read."""
    return launch_of(chosen.name, chosen.content, chosen.zero(), processes)
