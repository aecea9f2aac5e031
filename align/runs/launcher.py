"""``align launch``: the accelerate command of a recipe over several processes, and its signals while it runs.

The command is built from a configuration of ``recipes/accelerate/``. The launcher runs as a session of its own, so that
a signal comes to this process alone, which hands it to the training processes: torch's launcher would give them thirty
seconds and then kill them, whatever they are saving.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import psutil

from align.errors import UserError
from align.recipe import recipes_folder
from align.recipe.messages import did_you_mean
from align.recipe.yaml import parse_file
from align.runs.damage import json_object
from align.runs.go_on import COMMAND
from align.runs.launch import check_deepspeed_file

_FORWARDED = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}


@dataclass(frozen=True)
class Configuration:
    """A launcher configuration: its name as ``--on`` takes it, its file, and what the file says."""

    name: str
    file: Path
    content: Mapping[str, Any]

    @property
    def on_cpu(self) -> bool:
        return self.content.get("use_cpu") is True

    @property
    def deepspeed(self) -> bool:
        return self.content["distributed_type"] == "DEEPSPEED"

    @property
    def processes(self) -> int:
        return self.content.get("num_processes", 1)

    @property
    def deepspeed_file(self) -> Path | None:
        """DeepSpeed's own file, where it names one."""
        settings = self.content.get("deepspeed_config") or {}
        if not self.deepspeed or not (named := settings.get("deepspeed_config_file")):
            return None
        # such a path starts at the working directory; that of a packaged configuration is beside it
        return self.file.parent / Path(named).name if self.name in configurations() else Path(named)

    def zero(self) -> Mapping[str, Any]:
        """What DeepSpeed's section ``zero_optimization`` says; of accelerate's own keys what they make of it.

        Raises:
            UserError: where DeepSpeed's file cannot be read.
        """
        if not self.deepspeed:
            return {}
        if (file := self.deepspeed_file) is None:
            settings = self.content.get("deepspeed_config") or {}
            devices = {
                what: {"device": settings.get(f"{what}_device")} for what in ("offload_optimizer", "offload_param")
            }
            return {"stage": settings.get("zero_stage", 2), **devices}
        check_deepspeed_file(str(file))
        try:
            found = json_object(file.read_bytes())
        except OSError as error:
            raise UserError(f"--on {self.name}: {file} cannot be read: {error.strerror}.") from error
        if found is None:
            raise UserError(f"--on {self.name}: {file} holds no JSON object.")
        if not isinstance(zero := found.get("zero_optimization"), dict):
            raise UserError(f"--on {self.name}: {file} has no section zero_optimization.")
        return zero

    def count(self, processes: int | None, devices: int) -> int:
        """How many processes are started: so many, else one for each accelerator, on a CPU what the file says.

        Raises:
            UserError: where the configuration or the machine does not have them.
        """
        if not self.on_cpu and not devices:
            raise UserError(
                f"--on {self.name} is for accelerators, and this machine has none. On a CPU: cpu1, cpu2-ddp, "
                "cpu2-fsdp2, cpu2-zero2 or cpu2-zero3. The command for another machine: --dry-run --processes N."
            )
        count = processes or (self.processes if self.on_cpu else devices)
        if self.content["distributed_type"] == "NO" and count != 1:
            raise UserError(f"--on {self.name} starts one process, and --processes says {count}: take cpu2-ddp.")
        if not self.on_cpu and count > devices:
            has = "1 accelerator" if devices == 1 else f"{devices} accelerators"
            raise UserError(f"--processes {count}: this machine has {has}, and each process needs one.")
        return count


def configurations() -> dict[str, Path]:
    """Name to file of the packaged configurations."""
    files = (recipes_folder() / "accelerate").glob("*.yaml")
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


def configuration(name: str) -> Configuration:
    """A packaged configuration by name, or a file of the user's own. Raises UserError."""
    known = configurations()
    file = known.get(name, Path(name))
    if not file.is_file():
        meant = did_you_mean(name, known)
        hint = f" Did you mean {meant!r}?" if meant else ""
        raise UserError(f"--on {name}: no such configuration or file.{hint} All: {', '.join(known)}.")
    try:
        content = parse_file(file, file.name).value
    except UserError as error:
        raise UserError(f"--on {name}: {str(error).splitlines()[0]}") from error
    if problem := _problem(content):
        raise UserError(f"--on {name}: {problem}.")
    return Configuration(name, file, content)


def _problem(content: Any) -> str | None:
    """What is wrong with a configuration's keys that are read here; accelerate looks at the others."""
    if not isinstance(content, dict) or "distributed_type" not in content:
        return "this is no configuration of accelerate (it names no distributed_type)"
    processes, on_cpu = content.get("num_processes"), content.get("use_cpu")
    if "num_processes" in content and (type(processes) is not int or processes < 1):
        return f"num_processes is {processes!r}; expected a whole number of 1 or more"
    if not isinstance(on_cpu, bool | None):
        return f"use_cpu is {on_cpu!r}; expected true or false"
    for key in ("deepspeed_config", "fsdp_config"):
        if not isinstance(content.get(key), dict | None):
            return f"{key} is {content[key]!r}; expected keys and values below it"
    if not isinstance(file := (content.get("deepspeed_config") or {}).get("deepspeed_config_file"), str | None):
        return f"deepspeed_config_file is {file!r}; expected a path"
    return None


@dataclass(frozen=True)
class Command:
    """An accelerate command: variables that are set for it, and the words behind ``accelerate launch``."""

    variables: Mapping[str, str]
    words: Sequence[str]

    def line(self) -> str:
        """The command as one types it."""
        beside = shutil.which("accelerate", path=str(Path(sys.executable).parent))
        start = ["accelerate", "launch"] if beside else [sys.executable, "-m", "accelerate.commands.launch"]
        return " ".join([*(f"{k}={v}" for k, v in self.variables.items()), shlex.join([*start, *self.words])])


def command(chosen: Configuration, processes: int, training: Sequence[str]) -> Command:
    """The command that starts so many processes of ``python -m align.train`` with the words of ``training``.

    Raises:
        UserError: where a variable of the environment says something else.
    """
    words = ["--config_file", str(chosen.file), "--num_processes", str(processes)]
    if chosen.name in configurations() and (file := chosen.deepspeed_file) is not None:
        words += ["--deepspeed_config_file", str(file)]
    on_cpu = {"DS_ACCELERATOR": "cpu"} if chosen.deepspeed else {"ACCELERATE_USE_CPU": "true"}
    variables = on_cpu if chosen.on_cpu else {}
    for key, value in os.environ.items():
        if key.startswith("ACCELERATE_USE_") and value.lower() not in ("false", variables.get(key)):
            raise UserError(
                f"{key}={value} is set in the environment, and accelerate would follow it and not --on {chosen.name}: "
                f"unset {key}."
            )
    return Command(variables, [*words, "-m", "align.train", *training])


def run(command: Command, directory: Path, started: Sequence[str], *, stdout: TextIO | None = None) -> int:
    """Run a command to its end and return its exit code; SIGINT, SIGTERM and SIGHUP reach its training processes.

    Until there are any, a signal ends the launcher. They run in sessions of their own, so Ctrl-C comes here alone.

    Args:
        directory: of the run.
        started: the words of the command that the user gave, for the line that says how to go on.
        stdout: where the processes print; by default where this one does.
    """
    launcher = subprocess.Popen(
        [sys.executable, "-m", "align.runs.workers", str(directory), *command.words],
        env={**os.environ, **command.variables, COMMAND: shlex.join(started)},
        start_new_session=True,
        stdout=stdout,
    )

    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(psutil.Error):
            for process in psutil.Process(launcher.pid).children() or [launcher]:
                process.send_signal(_FORWARDED[signal.Signals(number)])

    # a signal that is ignored, as SIGHUP under nohup, stays so
    before = {number: signal.getsignal(number) for number in _FORWARDED}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        code = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
