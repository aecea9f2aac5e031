"""A profile by kind of work: matrix products, attention, copies, elementwise, the optimizer and the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.autograd import DeviceType

# Parts of kernels' names on a GPU, of operators' names on a CPU. The first kind that matches counts.
KINDS = {
    "optimizer": ("adam", "multi_tensor", "lerp", "addcdiv", "addcmul"),
    "attention": ("flash", "fmha", "attention", "attn", "sdpa", "_flex"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "wgmma", "aten::mm", "addmm", "bmm", "matmul"),
    "copies and casts": ("copy", "memcpy", "memset", "fill", "catarray", "aten::cat", "aten::to", "contiguous"),
    "elementwise and sums": (
        "elementwise", "vectorized", "reduce", "softmax", "norm", "swiglu", "rope", "silu", "triton", "aten::mul",
        "aten::add", "aten::sub", "aten::div", "aten::exp", "aten::sum", "aten::mean", "aten::pow", "aten::rsqrt",
        "aten::neg",
    ),
}  # fmt: skip
OTHER = "other"
LONGEST = 12  # single names that are listed


def kind_of(name: str) -> str:
    lowered = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in lowered for part in parts)), OTHER)


def by_kind(averages: Iterable[Any]) -> dict[str, Any]:
    """Milliseconds by kind, and the longest names. On a GPU kernels alone count; on a CPU operators' own time.

    ``averages`` are those of a torch profile. The marks that optimizers and annotations leave on the device's time line
    lie over the kernels that they contain, so they are left out.
    """
    events = [event for event in averages if not event.is_user_annotation]
    kernels = [(e.key, e.self_device_time_total / 1000, e.count) for e in events if e.device_type == DeviceType.CUDA]
    found = kernels or [(e.key, e.self_cpu_time_total / 1000, e.count) for e in events]
    milliseconds = dict.fromkeys((*KINDS, OTHER), 0.0)
    for name, time, _ in found:
        milliseconds[kind_of(name)] += time
    longest = sorted(found, key=lambda entry: -entry[1])[:LONGEST]
    return {
        "of": "kernels of the device" if kernels else "operators of the CPU",
        "milliseconds": milliseconds,
        "longest": [
            {"name": name[:120], "kind": kind_of(name), "milliseconds": time, "calls": calls}
            for name, time, calls in longest
        ],
    }
