"""A plan in words: the table of ``align plan``, and the lines with which a run begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align.plan.changes import Change
from align.plan.plan import Plan
from align.report.progress import duration
from align.runs.memory import amount

_WIDTH = 28
# Seconds of a step below which a GPU waits for the host: forward, backward and optimizer of some tens of layers start
# thousands of kernels, each of which takes the host about ten microseconds. Assumed, and not measured.
_SHORT_STEP = 0.02


def table(plan: Plan, dropped: Sequence[str] = ()) -> Iterator[str]:
    """The plan, a line each. ``dropped`` are sentences on rows that were left out or cut."""
    about, memory = plan.batches, plan.memory
    yield f"Plan  {plan.name}      {where(plan)}"
    yield ""
    rows = "rows that are not at hand" if about.rows is None else f"{about.rows:,} rows"
    each = "1 micro-batch" if about.micro == 1 else f"{about.micro:,} micro-batches"
    shared = "" if plan.launch.processes == 1 else f" on each of {plan.launch.processes} processes"
    yield f"  batch      {about.examples:,} rows a step in {each}{shared}, the largest of {about.tokens:,} tokens"
    yield f"  steps      {about.steps:,} over {rows}, {about.positions:,} tokens in all, each prompt counted once"
    for sentence in dropped:
        yield f"             {sentence}"
    if about.guessed:
        yield "             their lengths are not known: every row is counted as long as it may be"
    all_, trained = memory.weights.sum("elements"), memory.weights.sum("trained")
    yield f"  weights    {_count(all_)}, of which {_count(trained)} are trained"
    yield ""
    yield f"  {'memory of a process, fullest at ' + memory.phase:<44} {'GiB':>8}"
    for name, size in memory.parts.items():
        if size:
            yield f"    {name:<42} {size / 2**30:>8.2f}"
    yield f"    {'total':<42} {memory.total / 2**30:>8.2f}    {verdict(plan)}"
    if memory.host:
        yield f"    {'on the host, all processes together':<42} {memory.host / 2**30:>8.2f}"
    if not memory.followed:
        yield "    the layers of this architecture cannot be followed without weights: activations are estimated"
    if plan.device.kind == "cpu":
        yield "    beside what the process holds before; a CPU's C library may keep freed memory, see docs/plan.md"
    yield ""
    yield f"  time       {duration(plan.time.seconds)} of training, by {plan.time.source}"
    step = plan.time.seconds / about.steps
    if plan.device.kind != "cpu" and step < _SHORT_STEP:
        each_step = f"{1000 * step:.2g} ms a step"
        yield f"             that is {each_step}; so short a step waits for the host: expect it to take longer"
    tokens = ", ".join(f"{name} {count:,}" for name, count in plan.time.tokens.items())
    yield f"             tokens: {tokens}"
    disk = plan.disk
    kept = f", {disk.checkpoints} checkpoints of {amount(disk.checkpoint)}" if disk.checkpoints else ""
    short = "" if disk.total <= disk.free else ": too much"
    yield f"  disk       model {amount(disk.model)}{kept}; {amount(disk.free)} are free{short}"


def where(plan: Plan) -> str:
    """Launch and device."""
    count = plan.launch.processes
    many = "1 process" if plan.launch.kind == "one" else f"{count} processes under {plan.launch.name}"
    return f"{many}, {plan.device.name} of {amount(plan.device.total)}"


def verdict(plan: Plan) -> str:
    """Whether it fits."""
    there = amount(plan.device.room)
    if plan.fits:
        return f"of {there} free: fits"
    if plan.memory.host and plan.need <= plan.device.room:
        return "does not fit: the host has no room for it"
    times = "" if plan.need == plan.memory.total else f" in each of {plan.launch.processes} processes"
    return f"of {there} free{times}: does not fit"


def cures(found: Sequence[Change]) -> Iterator[str]:
    """The changes, a line each."""
    if not found:
        yield "None of the changes that are tried needs less (docs/plan.md): take a smaller model."
        return
    yield "What needs less, the smallest change first:" if found[-1].plan.fits else "Nothing fits; what needs less:"
    width = max(len(one.text) for one in found)
    for one in found:
        yield f"  {one.text:<{width}}   {amount(one.plan.memory.total):>10}{'   fits' if one.plan.fits else ''}"


def line(plan: Plan) -> str:
    """One line for a run that begins."""
    memory, part = plan.memory, max(plan.memory.parts, key=lambda name: plan.memory.parts[name])
    return (
        f"plan: {amount(memory.total)} at the most, {part} {amount(memory.parts[part])} of it; "
        f"{amount(plan.device.room)} are free; about {duration(plan.time.seconds)} of training"
    )


def refusal(plan: Plan, found: Sequence[Change]) -> str:
    """What a run says that will not fit."""
    parts = ", ".join(f"{name} {amount(size)}" for name, size in plan.memory.parts.items() if size)
    return "\n".join(
        (
            f"This run needs {amount(plan.memory.total)} on {where(plan)}, {verdict(plan)}.",
            f"At {plan.memory.phase}: {parts}.",
            *cures(found),
            "Nothing was loaded. align plan FILE says more; --anyway starts it all the same.",
        )
    )


def _count(number: int) -> str:
    """A number of weights."""
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,}"
