"""The vocabulary head, forward and backward: ours, whole logits, chunks of tokens, and Liger's fused loss in turn.

    python benchmarks/head.py            a table
    python benchmarks/head.py --json     the numbers

A shape is TOKENSxHIDDENxVOCABULARY. On a GPU weights are bfloat16, or with ``:float32`` behind the shape float32 under
bf16 autocast, as in a training; on a CPU everything is float32. Each round runs every way once. The loss is the sum of
the targets' negative log-probs. Errors are those of the loss and of both gradients from float64, on the first tokens,
relative to the largest entry.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from align.engine.fused import Finish, fused_works
from align.engine.head import HeadJob, read_head
from align.engine.reads import LogProb

GPU_SHAPES = "8192x4096x131072,8192x4096x151936,8192x2048x128256,8192x2048x128256:float32"
CPU_SHAPES = "64x512x32768,1000x512x32768"
CHUNK = 1024  # tokens of a checkpointed chunk
EXACT = 64  # tokens that are compared with float64

Loss = Callable[[nn.Linear, Tensor, Tensor], Tensor]


def ours(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    return -read_head(head, hidden, HeadJob(targets, (LogProb(),), Finish())).sum()


def whole(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden), targets, reduction="sum")


def chunked(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    def loss(states: Tensor, ids: Tensor) -> Tensor:
        return functional.cross_entropy(head(states).float(), ids, reduction="sum")

    parts = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.stack([checkpoint(loss, *part, use_reentrant=False) for part in parts]).sum()


def liger(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, hidden, targets)


# matrix products of N x H x V that a way does: those that make the logits twice do four
WAYS: dict[str, tuple[Loss, int]] = {
    "ours": (ours, 4),
    "whole": (whole, 3),
    "chunked": (chunked, 4),
    "liger": (liger, 3),
}


@dataclass(frozen=True)
class Shape:
    """What the head is run on; ``autocast`` means float32 weights under bf16 autocast."""

    tokens: int
    hidden: int
    vocabulary: int
    autocast: bool

    @classmethod
    def parse(cls, text: str) -> Shape:
        sizes, _, weights = text.partition(":")
        if weights not in ("", "float32"):
            raise ValueError(text)
        return cls(*map(int, sizes.split("x", 2)), autocast=weights == "float32" and torch.cuda.is_available())

    def inputs(self, device: torch.device) -> tuple[nn.Linear, Tensor, Tensor]:
        """Head, hidden states and targets; logits spread by about 3, so that targets differ in probability."""
        torch.manual_seed(0)
        narrow = torch.bfloat16 if device.type == "cuda" else torch.float32
        weights = torch.float32 if self.autocast else narrow
        head = nn.Linear(self.hidden, self.vocabulary, bias=False, device=device, dtype=weights)
        nn.init.normal_(head.weight, std=3 / self.hidden**0.5)
        hidden = torch.randn(self.tokens, self.hidden, device=device, dtype=narrow).requires_grad_()
        return head, hidden, torch.randint(self.vocabulary, (self.tokens,), device=device)

    def precision(self, device: torch.device) -> contextlib.AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()


def run_once(loss: Loss, shape: Shape, inputs: tuple[nn.Linear, Tensor, Tensor]) -> dict[str, float]:
    """Seconds forward and in all, and peak GiB above what was there (of a GPU; the weight's gradient is in it)."""
    head, hidden, targets = inputs
    head.weight.grad = hidden.grad = None
    cuda = hidden.device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    wait()
    start = time.perf_counter()
    with shape.precision(hidden.device):
        value = loss(head, hidden, targets)
    wait()
    middle = time.perf_counter()
    value.backward()
    wait()
    found = {"forward": middle - start, "seconds": time.perf_counter() - start}
    return found | ({"peak_gib": (torch.cuda.max_memory_allocated() - before) / 2**30} if cuda else {})


def errors(losses: dict[str, Loss], shape: Shape, inputs: tuple[nn.Linear, Tensor, Tensor]) -> dict[str, dict]:
    """Largest errors against float64 on the first tokens, by way."""
    head, hidden, targets = inputs
    states, ids = hidden.detach()[:EXACT], targets[:EXACT]
    exact = nn.Linear(shape.hidden, shape.vocabulary, bias=False, device=hidden.device, dtype=torch.float64)
    # under autocast every way sees the weight in bfloat16
    seen = head.weight.detach().bfloat16() if shape.autocast else head.weight.detach()
    exact.load_state_dict({"weight": seen.double()})
    oracle = states.double().requires_grad_()
    value = whole(exact, oracle, ids)
    value.backward()
    expected = {"loss": value.detach(), "hidden": oracle.grad, "weight": exact.weight.grad}
    out = {}
    for name, loss in losses.items():
        head.weight.grad, own = None, states.clone().requires_grad_()
        with shape.precision(hidden.device):
            value = loss(head, own, ids)
        value.backward()
        found = {"loss": value.detach(), "hidden": own.grad, "weight": head.weight.grad}
        gaps = {key: (found[key].double() - expected[key]).abs().max() / expected[key].abs().max() for key in found}
        out[name] = {key: gap.item() for key, gap in gaps.items()}
    return out


def usable(device: torch.device) -> tuple[dict[str, Loss], dict[str, str]]:
    """The ways that run here, and why the others do not."""
    losses = {name: loss for name, (loss, _) in WAYS.items()}
    skipped = {}
    if device.type != "cuda":
        skipped["liger"] = "its kernels need a GPU"
    elif installed("liger-kernel") is None:
        skipped["liger"] = "liger-kernel is not installed"
    return {name: loss for name, loss in losses.items() if name not in skipped}, skipped


def measure_shape(shape: Shape, rounds: int, device: torch.device) -> dict[str, Any]:
    """Every way on one shape."""
    inputs = shape.inputs(device)
    losses, skipped = usable(device)
    for name, loss in list(losses.items()):
        try:
            for _ in range(2):  # kernels compile and plans are made
                run_once(loss, shape, inputs)
        except (RuntimeError, TypeError) as error:  # out of memory, or a library that does not take this case
            skipped[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            del losses[name]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in losses}
    for number in range(rounds):
        order = list(losses)
        for name in order[number % len(order) :] + order[: number % len(order)]:  # nobody is always first
            runs[name].append(run_once(losses[name], shape, inputs))
    inputs[0].weight.grad = inputs[1].grad = None
    gaps = errors(losses, shape, inputs)
    product = 2 * shape.tokens * shape.hidden * shape.vocabulary
    report: dict[str, Any] = {name: {"skipped": why} for name, why in skipped.items()}
    for name, found in runs.items():
        median = {key: statistics.median(run[key] for run in found) for key in found[0]}
        rate = WAYS[name][1] * product / median["seconds"] / 1e12
        fastest = min(run["seconds"] for run in found)
        report[name] = median | {"fastest": fastest, "tflops": rate, "errors": gaps[name]}
    return {name: report[name] for name in WAYS}


def installed(package: str) -> str | None:
    """Version of a package, None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def about(device: torch.device) -> dict[str, Any]:
    """Machine, versions, and whether our kernels run."""
    cuda = device.type == "cuda"
    why = fused_works(device, torch.bfloat16 if cuda else torch.float32)
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "versions": {name: installed(name) or "none" for name in ("torch", "triton", "liger-kernel")},
        "fused": "fused kernels" if why is None else f"torch's operations: {why}",
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    head = report["about"]
    versions = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    lines = [f"{head['device']}; {versions}; {head['fused']}. Medians; errors of loss, hidden and weight gradients"]
    for shape, ways in report["shapes"].items():
        lines.append(shape)
        for name, way in ways.items():
            if "skipped" in way:
                lines.append(f"  {name:8} skipped, {way['skipped']}")
                continue
            peak = f"{way['peak_gib']:6.2f} GiB" if "peak_gib" in way else ""
            gaps = " ".join(f"{gap:.0e}" for gap in way["errors"].values())
            lines.append(
                f"  {name:8} {1e3 * way['seconds']:8.1f} ms (forward {1e3 * way['forward']:.1f}) "
                f"{way['tflops']:7.2f} TFLOP/s {peak} {gaps}"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=10 if cuda else 3, help="runs of each way")
    parser.add_argument("--shapes", default=GPU_SHAPES if cuda else CPU_SHAPES, help="TOKENSxHIDDENxVOCABULARY,...")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU (default 1)")
    args = parser.parse_args(argv)
    try:
        shapes = {text: Shape.parse(text) for text in args.shapes.split(",")}
    except (TypeError, ValueError):
        parser.error(f"a shape is written 8192x4096x131072 or 8192x4096x131072:float32, not {args.shapes}")
    if not cuda:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    measure = functools.partial(measure_shape, rounds=args.rounds, device=device)
    report = {"about": about(device), "shapes": {text: measure(shape) for text, shape in shapes.items()}}
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
