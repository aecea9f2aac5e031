"""`align doctor`: what this machine has, what is missing, and the cure of each lack."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from align.versions import DISTRIBUTION, OPTIONAL, TESTED, deepspeed_problem, installed

_PYTHON = (3, 11)
_GIB = 2**30


@dataclass(frozen=True)
class Line:
    """One observation. Only ``problem`` makes the verb exit with 1."""

    level: Literal["ok", "note", "problem"]
    topic: str
    text: str
    cure: str = ""


@dataclass
class Diagnosis:
    """Everything that was looked at."""

    lines: list[Line] = field(default_factory=list)

    @property
    def problems(self) -> list[Line]:
        return [line for line in self.lines if line.level == "problem"]

    def add(self, level: Literal["ok", "note", "problem"], topic: str, text: str, cure: str = "") -> None:
        self.lines.append(Line(level, topic, text, cure))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {"lines": [asdict(line) for line in self.lines], "problems": len(self.problems)}

    def render(self) -> str:
        """Text for a terminal: one line each, the cure below what is wrong."""
        rows = []
        for line in self.lines:
            rows.append(f"  {line.level:<8} {line.topic:<16} {line.text}")
            if line.cure:
                rows.append(f"  {'':<8} {'':<16} -> {line.cure}")
        count = len(self.problems)
        rows.append(f"{count} problem{'s' if count != 1 else ''}." if count else "Nothing is missing.")
        return "\n".join(rows)


def diagnose() -> Diagnosis:
    """Look at Python, packages, devices, memory, disk, compiler and the Hub's settings. Imports torch."""
    found = Diagnosis()
    _python(found)
    _packages(found, TESTED, _required())
    _optional(found)
    _devices(found)
    _memory(found)
    _compiler(found)
    _hub(found)
    return found


def _python(found: Diagnosis) -> None:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < _PYTHON:
        found.add("problem", "python", text, f"install Python {_PYTHON[0]}.{_PYTHON[1]} or newer")
    else:
        found.add("ok", "python", text)


def _required() -> dict[str, str]:
    """Distribution to allowed versions, as the installed package states them; empty where it is not installed."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        stated = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        return {}
    return {item.name.lower(): str(item.specifier) for item in stated if item.marker is None}


def _packages(found: Diagnosis, tested: Mapping[str, str], required: Mapping[str, str]) -> None:
    from packaging.specifiers import SpecifierSet

    for name, good in tested.items():
        have, allowed = installed(name), required.get(name.lower(), "")
        if have is None:
            found.add("problem", name, "not installed", f"pip install '{name}=={good}'")
        elif not SpecifierSet(allowed).contains(have, prereleases=True):
            found.add("problem", name, f"{have} is outside {allowed}", f"pip install '{name}=={good}'")
        elif have != good:
            found.add("note", name, f"{have} (tested with {good})")
        else:
            found.add("ok", name, have)


def _optional(found: Diagnosis) -> None:
    for name, (purpose, cure) in OPTIONAL.items():
        have = installed(name)
        if have is None:
            found.add("note", name, f"not installed; for {purpose}", cure)
        elif name == "deepspeed" and (problem := deepspeed_problem()):
            found.add("problem", name, *problem.removesuffix(".").split(": "))
        else:
            found.add("ok", name, have)


def _devices(found: Diagnosis) -> None:
    try:
        import torch
    except ImportError as error:
        found.add("problem", "device", f"torch cannot be imported: {error}", "reinstall torch")
        return
    if not torch.accelerator.is_available():
        cpus = os.cpu_count() or 1
        found.add("ok", "device", f"CPU only, {cpus} cores, {torch.get_num_threads()} threads")
        if shutil.which("nvidia-smi"):
            found.add(
                "problem",
                "device",
                f"there is an NVIDIA driver, but torch {torch.__version__} sees no device",
                "install the CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu130",
            )
        return
    for index in range(torch.accelerator.device_count()):
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info(index)
            name, memory = torch.cuda.get_device_name(index), f", {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
            bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
            found.add("ok", f"device {index}", f"{name}{memory}, {bf16}")
        else:
            found.add("ok", f"device {index}", str(torch.accelerator.current_accelerator()))


def _memory(found: Diagnosis) -> None:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found.add("ok", "memory", f"{total / _GIB:.1f} GiB")
    free = shutil.disk_usage(".").free
    text = f"{free / _GIB:.1f} GiB free here"
    if free < _GIB:
        found.add("problem", "disk", text, "free some space, or set output: to another disk")
    else:
        found.add("ok", "disk", text)


def _compiler(found: Diagnosis) -> None:
    """DeepSpeed on CPU compiles its communication at the start of every run, and dies without a C++ compiler."""
    if installed("deepspeed") is None:
        return
    compiler = os.environ.get("CXX") or next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), None)
    if compiler is None or shutil.which(compiler) is None:
        found.add("problem", "compiler", "DeepSpeed needs a C++ compiler", "install g++ (apt install g++), or set CXX")
    elif shutil.which("ninja") is None and installed("ninja") is None:
        found.add("problem", "compiler", f"{compiler}, but no ninja", "pip install ninja")
    else:
        found.add("ok", "compiler", f"{compiler} with ninja, for DeepSpeed")


def _hub(found: Diagnosis) -> None:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    cache = os.environ.get("HF_HOME") or os.path.join("~", ".cache", "huggingface")
    state = "switched off (HF_HUB_OFFLINE)" if offline else "not switched off (not tried)"
    found.add("ok", "hub", f"{state}, cache in {cache}")
