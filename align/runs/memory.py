"""Memory of a device: what there is, who holds it, and what an error that says it ran out tells. Sizes are bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import DoesNotFit, ran_out

if TYPE_CHECKING:
    import torch

_SIZES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_SIZE = rf"([\d.]+) ({'|'.join(_SIZES)})"


@dataclass(frozen=True)
class Memory:
    """What a device has.

    Attributes:
        device: its name, such as cuda:0 or cpu.
        total: all of it.
        free: what nobody holds.
        held: what this process's tensors hold; on a CPU, what the process does.
        spare: what torch keeps for this process's next tensors.
        peak: the most that tensors held at a time; 0 where torch does not count it, as on a CPU.
    """

    device: str
    total: int
    free: int
    held: int
    spare: int = 0
    peak: int = 0

    @property
    def room(self) -> int:
        """What this process may hold in all."""
        return self.held + self.spare + self.free


def memory(device: torch.device) -> Memory:
    """What a device has now. Nothing waits for the device."""
    import torch

    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):  # a CPU, or an Apple GPU, which shares its memory
        return _of_process(device.type)
    free, total = module.mem_get_info(device)
    held = module.memory_allocated(device)
    spare = module.memory_reserved(device) - held
    return Memory(str(device), total, free, held, spare, module.max_memory_allocated(device))


def usual_device() -> torch.device:
    """The accelerator that is here, else the CPU. A build of torch for one, on a machine without it, has none."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def accelerators() -> tuple[tuple[int, int], ...]:
    """Memory and multiprocessors of each accelerator; 0 of these where it does not say.

    A process of its own looks, since a look takes memory of the first one that only its end gives back.
    """
    import torch

    if not torch.accelerator.is_available():
        return ()
    look = (
        "import torch\n"
        "device = torch.accelerator.current_accelerator()\n"
        "module = torch.get_device_module(device)\n"
        "for i in range(torch.accelerator.device_count()):\n"
        "    chip = module.get_device_properties(i)\n"
        "    print(chip.total_memory, getattr(chip, 'multi_processor_count', 0))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    if done.returncode:  # such as an Apple GPU, which shares the memory of its host
        return ((_of_process("host").total, 0),) * torch.accelerator.device_count()
    found = (line.split() for line in done.stdout.splitlines())
    return tuple((int(total), int(multiprocessors)) for total, multiprocessors in found)


def peak(device: torch.device) -> int:
    """The most bytes held at a time: by tensors on an accelerator, elsewhere by this whole process."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return memory(device).peak or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _of_process(name: str) -> Memory:
    """What the machine, a container and ``ulimit -v`` leave to this process."""
    import resource

    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS; Linux says more below
    address, free = 0, total - held
    if Path("/proc/self/statm").exists():
        address, held = (page * int(n) for n in Path("/proc/self/statm").read_text().split()[:2])
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), total - held)
    container = Path("/sys/fs/cgroup/memory.max")
    limit = container.read_text().strip() if container.exists() else "max"
    if limit.isdigit():
        total, free = min(total, int(limit)), min(free, int(limit) - held)
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:
        total, free = min(total, allowed), min(free, allowed - address)
    return Memory(name, total, max(free, 0), held)


@dataclass(frozen=True)
class Shortage:
    """What was there when memory ran out, and how much more was asked for (0 where the error does not say)."""

    memory: Memory
    asked: int

    @classmethod
    def of(cls, error: BaseException, device: torch.device | None = None) -> Shortage:
        """What an error says, and where it is silent, what ``device`` (by default the accelerator) has now."""
        import torch

        text = str(error)
        on_cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator" in text
        if on_cpu or (device is None and not torch.accelerator.is_available()):
            device = torch.device("cpu")
        now = memory(device or usual_device())
        said = {
            "total": _size(f"total capacity of {_SIZE}", text),
            "free": _size(f"of which {_SIZE} is free", text),
            "held": _size(f"{_SIZE} is allocated by PyTorch", text),
            "spare": _size(f"{_SIZE} is reserved by PyTorch but unallocated", text),
        }
        known: dict[str, Any] = {name: size for name, size in said.items() if size is not None}
        return cls(replace(now, **known), _size(f"to allocate {_SIZE}", text) or 0)

    def sentence(self, doing: str = "") -> str:
        """What there is and what was asked for; ``doing`` says while what."""
        more = f", and {amount(self.asked)} more were asked for" if self.asked else ""
        there = f"{self.memory.device} has {amount(self.memory.total)}, {amount(self.memory.free)} of it free{more}."
        if self.memory.spare > max(self.asked, 2**20):
            there += (
                f" {amount(self.memory.spare)} are kept in pieces too small for that: the environment variable "
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True joins them."
            )
        return f"Out of memory{doing and ' '}{doing}: {there}"


@contextmanager
def answered(answer: Callable[[BaseException], str] = lambda error: Shortage.of(error).sentence()) -> Iterator[None]:
    """Say ``answer`` where memory runs out within.

    Raises:
        DoesNotFit: with the answer. One that was raised within goes on as it is: who stands nearer knows more.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise DoesNotFit(answer(error)) from error


def explained(doing: str, cure: str) -> Callable[[BaseException], str]:
    """An answer: what there is, and below it what to do."""
    return lambda error: f"{Shortage.of(error).sentence(doing)}\n{cure}"


def tensor_bytes(tensors: Iterable[Any], device: torch.device, seen: set[int]) -> int:
    """Bytes behind tensors on a device, of sharded ones this process's part; ``seen`` are storages to leave out.

    What is counted is added to ``seen``, so that tied weights and views of one buffer count once.
    """
    total = 0
    for tensor in tensors:
        storage = local(tensor).untyped_storage()
        if storage.device.type == device.type and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def local(tensor: Any) -> torch.Tensor:
    """This process's part of a tensor: of FSDP2's, of ZeRO-3's, or all of it."""
    if hasattr(tensor, "to_local"):
        return tensor.to_local()
    return getattr(tensor, "ds_tensor", tensor)


def amount(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.1f} MiB"


def _size(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(float(found[1]) * _SIZES[found[2]]) if found else None
