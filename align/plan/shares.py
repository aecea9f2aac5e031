"""What each process holds from step to step under a launcher configuration, in bytes. Arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from align.plan.weights import Weights

Kind = Literal["one", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
_STAGES: tuple[Kind, ...] = ("ddp", "zero1", "zero2", "zero3")
Offloaded = frozenset[Literal["weights", "optimizer"]]
BOTH: Offloaded = frozenset({"weights", "optimizer"})
_OFFLOADS: dict[Literal["weights", "optimizer"], str] = {"weights": "offload_param", "optimizer": "offload_optimizer"}

_BUCKET = 500_000_000  # numbers of DeepSpeed's reduce bucket, where its file says nothing else


@dataclass(frozen=True)
class Launch:
    """So many processes under a configuration.

    Attributes:
        name: as ``--on`` takes it.
        kind: how weights, gradients and optimizer are shared out.
        offloaded: what is kept on the host; gradients are where the optimizer is.
        bucket, buckets: numbers of a bucket through which DeepSpeed exchanges gradients, and how many there are.
    """

    name: str
    processes: int
    kind: Kind
    offloaded: Offloaded = frozenset()
    bucket: int = _BUCKET
    buckets: int = 1

    @property
    def shares_weights(self) -> bool:
        return self.kind in ("fsdp2", "zero3")


def launch_of(name: str, content: Mapping[str, Any], zero: Mapping[str, Any], processes: int) -> Launch:
    """What a configuration of accelerate does.

    Args:
        content: what its file says.
        zero: what DeepSpeed's section ``zero_optimization`` says, where DeepSpeed is used.
    """
    settings = content.get("fsdp_config") or {}
    if content.get("distributed_type") == "FSDP" or "fsdp" in settings:
        return fsdp2(name, processes, offloads=settings.get("fsdp_offload_params") is True)
    if content.get("distributed_type") == "DEEPSPEED":
        return deepspeed(name, processes, zero)
    return Launch(name, processes, "ddp" if processes > 1 else "one")


def fsdp2(name: str, processes: int, *, offloads: bool) -> Launch:
    """FSDP2, which keeps weights, gradients and optimizer on the host or none of them."""
    return Launch(name, processes, "fsdp2", BOTH if offloads else frozenset())


def deepspeed(name: str, processes: int, zero: Mapping[str, Any]) -> Launch:
    """What DeepSpeed's section ``zero_optimization`` does: its stage, and what it offloads.

    What goes to a disk is counted as if it stayed on the host.
    """
    stage = zero.get("stage", 0)
    kind: Kind = _STAGES[int(stage)] if stage in range(4) else "zero2"
    devices = {what: zero.get(key) for what, key in _OFFLOADS.items()}
    moved = {what for what, to in devices.items() if isinstance(to, dict) and to.get("device") in ("cpu", "nvme")}
    said = zero.get("reduce_bucket_size")  # often 5e8
    bucket = int(said) if isinstance(said, int | float) else _BUCKET
    # one is filled while the other is sent; stage 3 has one
    buckets = 2 if zero.get("overlap_comm") is True and kind in ("zero1", "zero2") else 1
    return Launch(name, processes, kind, frozenset(moved), bucket, buckets)


@dataclass(frozen=True)
class Optimizer:
    """What an optimizer keeps and takes.

    Attributes:
        states: numbers kept for each trained one, in its type.
        bytes: bytes kept for each trained number where they are not numbers in its type.
        folded: whether it keeps sums over rows and columns instead, as Adafactor.
        at_once: whether its step makes a tensor as large as all trained weights, and not just as the largest of them.
    """

    states: int = 2
    bytes: float = 0.0
    folded: bool = False
    at_once: bool = False


# by the start of the name in train.optim; what is not listed is counted as Adam's two means
_OPTIMIZERS: tuple[tuple[str, Optimizer], ...] = (
    ("adamw_torch_fused", Optimizer()),
    ("adamw_torch", Optimizer(at_once=True)),
    ("adamw_bnb_8bit", Optimizer(0, 2 + 2 * 4 / 256)),
    ("adamw_8bit", Optimizer(0, 2 + 2 * 4 / 256)),
    ("paged_adamw_8bit", Optimizer(0, 2 + 2 * 4 / 256)),
    ("lion_8bit", Optimizer(0, 1 + 4 / 256)),
    ("lion", Optimizer(1)),
    ("sgd", Optimizer(0)),
    ("adafactor", Optimizer(0, folded=True)),
    ("adagrad", Optimizer(1)),
    ("rmsprop", Optimizer(1)),
)


def optimizer(name: str, device: str) -> Optimizer:
    """What is known of an optimizer by its name; on a CPU torch steps weight by weight."""
    found = next((about for start, about in _OPTIMIZERS if name.startswith(start)), Optimizer())
    return found if device != "cpu" else Optimizer(found.states, found.bytes, found.folded)


@dataclass(frozen=True)
class Held:
    """Bytes on each process's device: from step to step, and while weights that are shared out are put together.

    Attributes:
        gradients: once all of them are there, and ``buckets`` what they are exchanged through.
        gathered: weights of the layers at work, and of embedding and head.
        stepping: what the optimizer's step takes beside its states.
        host: on the machine's host, all processes together; what is offloaded.
        states: of the optimizer, all processes together, wherever they are.
    """

    weights: int
    reference: int
    optimizer: int
    gradients: int
    buckets: int = 0
    gathered: int = 0
    stepping: int = 0
    host: int = 0
    layer_gradients: tuple[int, ...] = field(default=())
    states: int = 0


def held(
    weights: Weights, launch: Launch, how: Optimizer, reference: int, narrow: bool, *, on_cpu: bool = False
) -> Held:
    """What is held under a launch.

    Args:
        reference: bytes of a whole frozen copy; 0 where there is none.
        narrow: whether forwards compute in 16 bits; DeepSpeed then keeps weights and gradients so, with float32 weights
            in the optimizer, and FSDP2 gathers them so.
        on_cpu: there a bucket takes no more than is put into it, and what is offloaded stays on the device.
    """
    size, trained, numbers = weights.sum("bytes"), weights.sum("trained_bytes"), weights.sum("trained")
    states = how.states * trained + int(how.bytes * numbers) + (weights.sum("rows") if how.folded else 0)
    largest = max(part.largest for part in weights.parts)
    stepping = trained if how.at_once else largest
    layers = tuple(part.trained_bytes for part in weights.layers)
    n = launch.processes
    if launch.kind in ("one", "ddp"):
        buckets = trained if launch.kind == "ddp" and n > 1 else 0
        return Held(size, reference, states, trained, buckets, 0, stepping, layer_gradients=layers, states=states)
    if launch.kind == "fsdp2":
        gathered = _gathered(weights, 2 if narrow else None)
        share = tuple(part // n for part in layers)
        kept = size // n if weights.divisible else size
        found = Held(kept, reference // n, states // n, trained // n, 0, gathered, stepping // n, 0, share)
    else:
        found = _deepspeed(weights, launch, states, reference, narrow, on_cpu)
    found = replace(found, states=n * found.optimizer)
    # on a CPU the host is the device
    return found if on_cpu else _offloaded(found, launch, weights.divisible)


def _deepspeed(weights: Weights, launch: Launch, states: int, reference: int, narrow: bool, on_cpu: bool) -> Held:
    """ZeRO: stage 1 shares out the optimizer, stage 2 the gradients too, stage 3 the weights too."""
    n, width = launch.processes, 2 if narrow else 4
    elements, numbers = weights.sum("elements"), weights.sum("trained")
    # the optimizer's own float32 weights, which stage 3 alone saves where they would be the same ones in the same place
    wide = 4 * numbers if narrow or launch.kind != "zero3" or "optimizer" in launch.offloaded else 0
    size = min(weights.sum("bytes"), width * elements)
    reference = min(reference, width * elements) if reference else 0
    bucket = width * launch.buckets * (min(launch.bucket, numbers) if on_cpu else launch.bucket)
    if not launch.shares_weights:
        gradients = width * numbers // (1 if launch.kind == "zero1" else n)
        return Held(size, reference, (states + wide) // n, gradients, bucket, 0, 0)
    gathered = _gathered(weights, width)
    parts = (size // n if weights.divisible else size, reference // n, (states + wide) // n, width * numbers // n)
    return Held(*parts, bucket, gathered, 0)


def _offloaded(found: Held, launch: Launch, divisible: bool) -> Held:
    """With what is kept on the host there, and not on the devices."""
    parts: dict[str, tuple[str, ...]] = {"optimizer": ("optimizer", "gradients", "stepping")}
    parts["weights"] = ("weights", "reference") if divisible else ("reference",)
    names = [name for what in launch.offloaded for name in parts[what]]
    host = launch.processes * sum(getattr(found, name) for name in names)
    layers = () if "optimizer" in launch.offloaded else found.layer_gradients
    return replace(found, **dict.fromkeys(names, 0), host=host, layer_gradients=layers)


def _gathered(weights: Weights, width: int | None) -> int:
    """Whole weights at a time: two layers, that at work and the next, and embedding and head with what is beside them.

    Gradients of one layer are whole until they are shared out.
    """
    layers = sorted((part.bytes if width is None else width * part.elements for part in weights.layers), reverse=True)
    around = sum(p.bytes if width is None else width * p.elements for p in (weights.embedding, weights.rest))
    trained = max((p.trained_bytes if width is None else width * p.trained for p in weights.parts), default=0)
    return sum(layers[:2]) + around + trained
