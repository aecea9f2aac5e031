"""Which kernel computes attention here: the fastest of those that can do what the model asks, and do it right.

Nothing is decided by a version or by the name of a chip: each kernel is run forward and backward on made-up queries,
keys and values of the model's own shape and type, compared with float64, and timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import attention as torch_attention

from align.engine.kernels.flex import flex
from align.engine.kernels.grouped import grouped
from align.engine.kernels.kernel import Kernel, Run, first_line
from align.engine.kernels.segments import segments
from align.engine.kernels.varlen import fixes_splits, varlen
from align.engine.layout import Layout, Segment

Agree = Callable[[bool], bool]

GROUPED = Kernel("sdpa by groups of like length", grouped)
FLEX = Kernel("flex_attention", flex)

# compiling flex_attention takes half a minute, which narrower models never win back
_FLEX_WIDTH = 1024
_RUNS = 5
_ABSENT = "not installed"

# two branches behind a prompt, a row without siblings, branches behind no prompt; longer than a block of any kernel
_CHECKED = Layout(
    [
        Segment(0, 150),
        Segment(150, 190, 0, 150),
        Segment(190, 203, 0, 150),
        Segment(203, 330),
        Segment(330, 335),
        Segment(335, 336),
    ]
)


def _pairs(count: int, prompt: int, answer: int) -> Layout:
    """Prompts with two answers each."""
    found = []
    for start in range(0, count * (prompt + 2 * answer), prompt + 2 * answer):
        end = start + prompt
        found.append(Segment(start, end))
        found += [Segment(end + i * answer, end + (i + 1) * answer, start, end) for i in (0, 1)]
    return Layout(found)


_TIMED = _pairs(8, 250, 180)


@dataclass(frozen=True)
class Call:
    """What a layer asks of attention."""

    heads: int
    key_heads: int
    size: int
    value_size: int
    dtype: torch.dtype
    scaling: float | None
    window: int | None
    softcap: float | None

    def inputs(self, layout: Layout, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Made-up query, key and value for a row, and a gradient of the result."""
        generator = torch.Generator(device).manual_seed(0)

        def made(heads: int, size: int) -> Tensor:
            return torch.randn(1, heads, layout.length, size, generator=generator, device=device).to(self.dtype)

        upstream = made(self.heads, self.value_size).transpose(1, 2)
        key, value = made(self.key_heads, self.size), made(self.key_heads, self.value_size)
        return made(self.heads, self.size), key, value, upstream

    def results(self, run: Run, layout: Layout, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Attention of ``inputs`` and the gradients of query, key and value."""
        query, key, value = (x.detach().requires_grad_() for x in inputs[:3])
        out = run(query, key, value, layout, scaling=self.scaling, window=self.window, softcap=self.softcap)
        return (out.detach(), *torch.autograd.grad(out, (query, key, value), inputs[3]))


@dataclass(frozen=True)
class Choice:
    """``kernel`` is the fastest. ``seconds`` are of one layer, forward and backward, by kernel; ``refused`` says why
    others were not used."""

    kernel: Kernel
    seconds: dict[str, float]
    refused: dict[str, str]

    def sentence(self) -> str:
        """One line for people."""
        times = {name: f"{1e3 * seconds:.2f} ms" for name, seconds in self.seconds.items()}
        mine = f", {times.pop(self.kernel.name)} a layer" if times else ""
        others = [f"{name} {took}" for name, took in times.items()]
        others += [f"not {name}: {reason}" for name, reason in self.refused.items()]
        return f"attention by {self.kernel.name}{mine}" + (f" ({'; '.join(others)})" if others else "")


def kernels_differ(device: torch.device) -> bool:
    """Whether there is a choice; on a CPU segments are the fastest way."""
    return device.type != "cpu"


def recorded(calls: dict[Call, None]) -> Run:
    """A kernel that is right everywhere and notes in ``calls`` what it was asked for."""

    def run(query: Tensor, key: Tensor, value: Tensor, layout: Layout, **asked: float | int | None) -> Tensor:
        sizes = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
        calls[Call(*sizes, query.dtype, **asked)] = None  # type: ignore[arg-type]
        return grouped(query, key, value, layout, **asked)  # type: ignore[arg-type]

    return run


def choose(calls: Sequence[Call], device: torch.device, agree: Agree) -> Choice:
    """The kernel for a model on ``device``, which is no CPU. The FlashAttention that it runs on is left switched on.

    Args:
        calls: what the model's layers ask for.
        agree: all-reduces a flag over ranks, so that all of them take the same kernel.
    """
    flash = [Kernel(f"varlen_attn{f' ({name})' if name else ''}", varlen, name) for name in _flash_names()]
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}

    def attempt(kernel: Kernel) -> bool:
        took, reason = _tried(kernel, calls, device)
        if agree(reason is None):
            seconds[kernel.name] = took
        elif reason != _ABSENT:
            refused[kernel.name] = reason or "another rank cannot use it"
        return kernel.name in seconds

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        able = [kernel for kernel in (*flash, GROUPED) if attempt(kernel)]
        wide = max(call.heads * call.size for call in calls) >= _FLEX_WIDTH
        if wide and all(kernel is GROUPED for kernel in able) and attempt(FLEX):
            able.append(FLEX)
    best = able[0] if able else GROUPED  # which the probe refuses then
    for kernel in able[1:]:
        if agree(seconds[kernel.name] < seconds[best.name]):
            best = kernel
    switch_flash(best.flash)
    return Choice(best, seconds, refused)


def _tried(kernel: Kernel, calls: Sequence[Call], device: torch.device) -> tuple[float, str | None]:
    """Seconds of a layer, forward and backward, as a mean over ``calls``; or why the kernel cannot be used."""
    try:
        switch_flash(kernel.flash)
        for call in calls:
            if fault := _fault(kernel.run, call, device):
                return 0.0, fault
        return statistics.mean(_seconds(kernel.run, call, device) for call in calls), None
    except ImportError:
        return 0.0, _ABSENT
    except Exception as error:  # whatever it is, other kernels do without
        return 0.0, first_line(error)


def _fault(run: Run, call: Call, device: torch.device) -> str | None:
    """What differs from float64 by more than rounding: the result, or a gradient."""
    inputs = call.inputs(_CHECKED, device)
    exact = call.results(segments, _CHECKED, [x.double().cpu() for x in inputs])
    ours = call.results(run, Layout(_CHECKED.segments), inputs)
    allowed = max(4 * torch.finfo(call.dtype).eps, 1e-5)
    for name, mine, theirs in zip(("result", "query", "key", "value"), ours, exact, strict=True):
        error = ((mine.double().cpu() - theirs).norm() / theirs.norm()).item()
        if not error <= allowed:
            what = "its result" if name == "result" else f"the gradient of its {name}"
            return f"{what} differs from float64 by {error:.1e}"
    return None


def _seconds(run: Run, call: Call, device: torch.device) -> float:
    """Median of some runs, forward and backward, after one that makes plans and fills caches."""
    inputs = call.inputs(_TIMED, device)
    layout = Layout(_TIMED.segments)
    times = []
    for _ in range(1 + _RUNS):
        _wait(device)
        start = time.perf_counter()
        call.results(run, layout, inputs)
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _flash_names() -> list[str | None]:
    """torch's own FlashAttention, and those that other packages may bring along."""
    # older torch cannot switch back to its own, or keep another from splitting keys by what lies beside a sequence
    others = hasattr(torch_attention, "restore_flash_attention_impl") and fixes_splits()
    return [None, *(torch_attention.list_flash_attention_impls() if others else ())]


def switch_flash(name: str | None) -> None:
    """Let torch's attention run on this FlashAttention, in the whole process."""
    if name is not None:
        if name != torch_attention.current_flash_attention_impl():
            torch_attention.activate_flash_attention_impl(name)
    elif torch_attention.current_flash_attention_impl() is not None:
        torch_attention.restore_flash_attention_impl()
