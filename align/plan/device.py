"""The device that is planned for: this machine's, or one that is named, such as 80GiB, A100-40GB or cpu."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from align.engine.tiles import area_of, tile_area
from align.errors import UserError

# name: (memory in GiB as the driver tells it, multiprocessors, bf16 operations a second without sparsity), from the
# makers' data sheets
CHIPS: dict[str, tuple[float, int, float]] = {
    "H200": (139.8, 132, 989e12),
    "H100": (79.1, 132, 989e12),
    "A100-80GB": (79.2, 108, 312e12),
    "A100-40GB": (39.4, 108, 312e12),
    "L40S": (44.4, 142, 362e12),
    "L4": (22.2, 58, 121e12),
    "A10G": (22.1, 80, 70e12),
    "RTX-4090": (23.5, 128, 165e12),
    "RTX-3090": (23.6, 82, 71e12),
    "T4": (14.6, 40, 65e12),
}
_BESIDE = re.compile(r"NVIDIA|GEFORCE|TESLA|SXM\d|HBM\w+|\d+GB")  # in a driver's name, beside that of the chip
_UNITS = {"GIB": 2**30, "GB": 10**9, "MIB": 2**20, "MB": 10**6}
_OTHER = (108, 312e12)  # multiprocessors and rate of a device of which the memory alone is known: an A100's

# What a process of a CPU grows by beside tensors (threads, code that is loaded late), and what freed pieces of memory
# that are not given back add: measured with benchmarks/plan.py. On CUDA the context, and what the allocator's blocks
# add: assumed, and not measured yet.
_GROWTH = {"cpu": 20 * 2**20, "cuda": 600 * 2**20}
_LOST = {"cpu": 0.02, "cuda": 0.03}


@dataclass(frozen=True)
class Device:
    """A device of each process.

    Attributes:
        kind: cpu or cuda; others are counted as cuda.
        total: its memory in bytes; of a CPU the host's.
        room: what a process may take of it beside what it has already.
        area: logits in a tile of the head.
        flops: operations a second of matrix products, by its maker; None on a CPU, where it is measured.
        known: whether the chip is one of ``CHIPS``, or a CPU; else its rate is that of an A100.
    """

    name: str
    kind: str
    total: int
    room: int
    area: int
    flops: float | None
    known: bool = True

    def overhead(self, held: int) -> int:
        """What is taken beside tensors where these take ``held`` bytes."""
        return _GROWTH[self.kind] + int(_LOST[self.kind] * held)


def named(text: str) -> Device:
    """A device that need not be here, by its name or its memory. Raises UserError."""
    if text.lower() == "cpu":
        return here(torch.device("cpu"))
    for name, (memory, units, flops) in CHIPS.items():
        if text.upper() == name:
            total = int(memory * 2**30)
            return Device(name, "cuda", total, total, area_of(units, total), flops)
    found = re.fullmatch(r"([0-9.]+) ?([GM]i?B)", text, re.IGNORECASE)
    if found is None or not re.fullmatch(r"\d+(\.\d+)?", found[1]) or not float(found[1]):
        raise UserError(f"--device {text}: expected a memory such as 80GiB, or one of cpu, {', '.join(CHIPS)}.")
    return unnamed(int(float(found[1]) * _UNITS[found[2].upper()]))


def unnamed(total: int, multiprocessors: int = 0) -> Device:
    """A device of which no more is known than its memory in bytes, and its multiprocessors or 0; all of it is free."""
    return Device(
        "a device", "cuda", total, total, area_of(multiprocessors or _OTHER[0], total), _OTHER[1], known=False
    )


def chip_of(name: str) -> str | None:
    """The one of ``CHIPS`` that a driver's name means; None for another chip, such as a smaller one of the series."""
    words = {word for word in re.split(r"[ -]", name.upper()) if not _BESIDE.fullmatch(word)}
    if "A100" in words:
        words.discard("PCIE")  # as fast as on a board, which an H100 is not
    return next((chip for chip in CHIPS if {w for w in chip.split("-") if not _BESIDE.fullmatch(w)} == words), None)


def here(device: torch.device) -> Device:
    """A device of this machine, with what is free of it now."""
    from align.runs.memory import memory

    now = memory(device)
    if device.type == "cpu":
        return Device("cpu", "cpu", now.total, now.free, tile_area(device), None)
    name = torch.get_device_module(device).get_device_name(device) if device.type == "cuda" else device.type
    known = chip_of(name)
    flops = CHIPS[known][2] if known else _OTHER[1]
    return Device(name, "cuda", now.total, now.room, tile_area(device), flops, known is not None)
