"""Is this run distributed in the way its command asked for?

accelerate starts without a word where it cannot do what it was asked: processes that know nothing of each other, plain
DDP in place of FSDP, one process in place of many. Every rank is therefore asked twice: ``check_launch`` compares the
environment that the launcher left with what accelerate made of it, before anything is loaded; ``check_step`` compares
what all ranks see in the first training step. Nothing here imports torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.errors import UserError
from align.versions import deepspeed_problem

_WORLD = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_DDP_CPU = (
    "On a CPU: align launch FILE --on cpu2-ddp; with accelerate launch or torchrun of your own set "
    "ACCELERATE_USE_CPU=true and no train.ddp_backend."
)
_FSDP_CPU = _DDP_CPU.replace("cpu2-ddp", "cpu2-fsdp2")
_ZERO_CPU = "DeepSpeed on a CPU: align launch FILE --on cpu2-zero3; with your own launcher unset ACCELERATE_USE_CPU."
_DDP = "DistributedDataParallel"
_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "no": "full precision"}
_SET = "train.bf16: true or false"
_WRAPPERS = {"FSDP": "FSDPModule", "DEEPSPEED": "DeepSpeedEngine"}


def check_launcher_files(env: Mapping[str, str] | None = None) -> None:
    """Refuse a launcher's configuration that names a DeepSpeed file which is not there.

    Raises:
        UserError: with where such a path starts.
    """
    name = (os.environ if env is None else env).get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    # accelerate also takes the content itself, coded in base64
    if name.endswith((".json", ".yaml", ".yml")):
        check_deepspeed_file(name)


def check_deepspeed_file(name: str) -> None:
    """Refuse a DeepSpeed file that is not there. Raises UserError, with where such a path starts."""
    if not Path(name).is_file():
        raise UserError(
            f"deepspeed_config_file: {name} is not there. A path in the launcher's configuration starts at the working "
            f"directory, here {Path.cwd()}: start from the folder that it is meant from, or write the whole path."
        )


def check_launch(made: Any, env: Mapping[str, str] | None = None) -> None:
    """Refuse a start that silently runs something other than what was asked for.

    Args:
        made: ``TrainingArguments`` (as soon as they exist) or an ``Accelerator`` (which knows more).
        env: the environment that the launcher left; this process's unless given.

    Raises:
        UserError: with the cure.
    """
    env = os.environ if env is None else env
    state = getattr(made, "distributed_state", None) or getattr(made, "state", made)
    kind, processes = _kind(state), int(state.num_processes)
    found = f"accelerate made {processes} process{'es' * (processes != 1)} of type {kind}, backend {state.backend}"
    world = _world(env)
    fsdp, deepspeed = launched_with_fsdp(env), _flag(env, "ACCELERATE_USE_DEEPSPEED")
    cure = _ZERO_CPU if deepspeed else _FSDP_CPU if fsdp else _DDP_CPU
    if world is None and processes == 1 and "MASTER_ADDR" in env and "ACCELERATE_DYNAMO_BACKEND" in env:
        # of all launchers only accelerate's simple one leaves an address without a world, and only for more than one
        raise UserError(
            "accelerate launch was asked for several processes and started one: it starts CPU processes only through "
            f"mpirun. {_DDP_CPU} If one process is meant, use --num_processes 1 and unset MASTER_ADDR."
        )
    if (world or 1) != processes:
        raise UserError(
            f"{world} processes were started, but {found}: each would be a run of its own, all writing into one "
            f"directory. {cure}"
        )
    if processes > 1 and kind == "NO":
        raise UserError(
            f"{processes} processes were started, but {found}: data would be divided between them and gradients never "
            f"shared. {cure}"
        )
    if fsdp and kind != "FSDP" and (kind in ("NO", "MULTI_CPU") or hasattr(state, "fsdp_plugin")):
        raise UserError(f"FSDP was asked for, but {found}, which shards nothing. {_FSDP_CPU}")
    if (deepspeed or kind == "DEEPSPEED") and (problem := deepspeed_problem()):
        raise UserError(problem)
    # on a CPU accelerate makes DeepSpeed of it later, and with the variable never
    if deepspeed and (_flag(env, "ACCELERATE_USE_CPU") or (kind != "DEEPSPEED" and hasattr(state, "deepspeed_plugin"))):
        raise UserError(f"DeepSpeed was asked for, but {found}. {_ZERO_CPU}")
    if kind == "FSDP" and getattr(getattr(state, "fsdp_plugin", None), "fsdp_version", 2) == 1:
        raise UserError("FSDP version 1 is not supported: set fsdp_version: 2 (see recipes/accelerate/fsdp2.yaml).")
    compiler = getattr(getattr(state, "dynamo_plugin", None), "backend", "NO")
    if (backend := str(getattr(compiler, "value", compiler))) != "NO":
        raise UserError(
            f"accelerate was asked to compile the whole model (dynamo_backend {backend.lower()}), sampling included. "
            "Set dynamo_backend to no, or unset ACCELERATE_DYNAMO_BACKEND; train.torch_compile: true compiles layers."
        )
    _check_precision(made, env)
    if kind == "NO" and getattr(made, "n_gpu", 1) > 1:
        raise UserError(
            f"One process sees {made.n_gpu} GPUs, which transformers would use through torch's DataParallel; packed "
            "rows cannot be cut up that way. Use accelerate launch with recipes/accelerate/ddp.yaml, or choose one "
            "GPU: CUDA_VISIBLE_DEVICES=0."
        )


def launched_with_fsdp(env: Mapping[str, str] | None = None) -> bool:
    """Whether the launcher asked for FSDP; known before accelerate has made anything of it."""
    return _flag(os.environ if env is None else env, "ACCELERATE_USE_FSDP")


def fsdp_offloads(env: Mapping[str, str] | None = None) -> bool:
    """Whether FSDP was asked to keep weights, gradients and optimizer on the host."""
    return _flag(os.environ if env is None else env, "FSDP_OFFLOAD_PARAMS")


def _check_precision(made: Any, env: Mapping[str, str]) -> None:
    """Refuse a launcher or a DeepSpeed file that asks for another precision than the recipe. Raises UserError.

    accelerate takes the launcher's word where the recipe has none, and under DeepSpeed neither of them but the file's.
    """
    if not hasattr(made, "bf16"):  # an Accelerator, which comes later
        return
    recipe = "bf16" if made.bf16 else "fp16" if made.fp16 else "no"
    launcher = env.get("ACCELERATE_MIXED_PRECISION", "no")
    if launcher not in ("no", recipe):
        raise UserError(
            f"The launcher asks for mixed_precision {launcher} and the recipe for {_PRECISIONS[recipe]}: precision is "
            f"the recipe's. Leave mixed_precision out of the command and the launcher's configuration, and set {_SET}."
        )
    plugin: Any = getattr(made, "deepspeed_plugin", None)
    for name in ("bf16", "fp16") if plugin is not None else ():
        says = plugin.deepspeed_config.get(name, {}).get("enabled", False) is True
        if says != (recipe == name):
            raise UserError(
                f"The DeepSpeed file says {name} {str(says).lower()}, which DeepSpeed would follow, and the recipe "
                f'wants {_PRECISIONS[recipe]}. Write "{name}": {{"enabled": "auto"}} there, and set {_SET}.'
            )


class Seen(NamedTuple):
    """What one rank sees in its first step.

    Attributes:
        processes, kind, backend: accelerate's.
        wrapper: the class that the training step calls; see ``wrapper_of``.
        gradients: norm of the gradients that the rank holds whole; None where they are shared out.
    """

    processes: int
    kind: str
    backend: str
    wrapper: str
    gradients: float | None


def wrapper_of(model: Any) -> str:
    """The name of the wrapper around a model, or the model's own where there is none."""
    names = [c.__name__ for c in type(model).__mro__]
    return next((name for name in names if name in (*_WRAPPERS.values(), _DDP)), names[0])


def check_step(found: Sequence[Seen]) -> None:
    """Refuse to go on where a rank trains in another way than it was told, or than the others.

    Args:
        found: of every rank, in order; each rank is given the same, and so all of them raise.

    Raises:
        UserError: naming the rank, what it sees and the cure.
    """
    first = found[0]
    wanted = _WRAPPERS.get(first.kind, _DDP if first.processes > 1 else None)
    cure = {"FSDP": _FSDP_CPU, "DEEPSPEED": _ZERO_CPU}.get(first.kind, _DDP_CPU)
    for rank, seen in enumerate(found):
        if seen[:3] != first[:3] or seen.processes != len(found):
            raise UserError(
                f"Rank {rank} of {len(found)} is one of {seen.processes} processes of type {seen.kind}, backend "
                f"{seen.backend}; rank 0 is one of {first.processes} of type {first.kind}, backend {first.backend}: "
                f"start all alike. {cure}"
            )
        if wanted is not None and seen.wrapper != wanted:
            raise UserError(
                f"{seen.processes} process{'es' * (seen.processes != 1)} of type {seen.kind} must train a {wanted}, "
                f"but the model of rank {rank} is a {seen.wrapper}: its gradients would not be shared. {cure}"
            )
        if seen.kind == "FSDP" and seen.gradients is not None:
            raise UserError(f"FSDP was asked for, but rank {rank} holds all gradients: nothing is sharded. {cure}")
        if wanted == _DDP and not _same(seen.gradients, first.gradients):
            raise UserError(
                f"After the first step's backward pass the gradients of rank {rank} have the norm {seen.gradients}, "
                f"those of rank 0 {first.gradients}: they are not shared. {cure}"
            )


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None or math.isnan(one):
        return one is other or (one is not None and other is not None and math.isnan(other))
    return math.isclose(one, other, rel_tol=1e-4)


def _world(env: Mapping[str, str]) -> int | None:
    """Number of processes that the launcher says it started, or None where it says nothing."""
    return next((int(env[name]) for name in _WORLD if env.get(name, "").isdigit()), None)


def _flag(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").lower() in ("1", "true", "yes", "on")


def _kind(state: Any) -> str:
    """accelerate's distributed type by name, for instance MULTI_GPU."""
    return str(getattr(state.distributed_type, "value", state.distributed_type)).removeprefix("DistributedType.")


def backend(accelerator: Any) -> str:
    """How training is shared out, in one word: single, ddp, fsdp2, zero1, zero2 or zero3."""
    kind = _kind(accelerator)
    if kind == "DEEPSPEED":
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    if kind == "FSDP":
        return "fsdp2"
    return "ddp" if accelerator.num_processes > 1 else "single"
