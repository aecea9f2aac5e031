"""A whole DPO step, ours and TRL's in turn: same weights, same rows, same batch.

    python benchmarks/preference_step.py            a table
    python benchmarks/preference_step.py --json     the numbers

Every round takes another batch and runs each way on it, so that noise of the machine hits all of them; ratios are taken
within a round. Memory is the peak above the loaded weights, each in a process of its own. float32 on a CPU, bf16
autocast on CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rows import Row, batches, hh_file, trie_nodes

Steps = dict[str, list[Any]]  # by way, one ``ways.Step`` per round

VOCABULARY, MEMORY_VOCABULARY = 32_768, 131_072
NAMES = ("hh", "tldr", "chat", "long_answer")
PADDED_CHUNKS = (1, 2, 4)  # sequences per padded micro-chunk; the fastest of them is compared with


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratio(steps: Steps, other: str, mine: str = "ours", *, cpu: bool = False) -> dict[str, float]:
    """How many times as long ``other`` takes as ``mine``, round by round; by the clock or in processor time."""
    field = "cpu_seconds" if cpu else "seconds"
    pairs = zip(steps[other], steps[mine], strict=True)
    return spread([getattr(theirs, field) / getattr(ours, field) for theirs, ours in pairs])


def measure_shape(shape: str, rounds: int, models: tuple[Any, Any]) -> dict[str, Any]:
    """Seconds, losses and positions of every way on ``rounds`` batches of a shape."""
    plan = batches(shape, rounds, VOCABULARY)
    if isinstance(plan, str):
        return {"skipped": plan}
    ours, trls = models
    padded = [f"padded:{n}" for n in PADDED_CHUNKS]
    ways = {"ours": ours, "trl": trls, "ours_warm": ours, "trl_compact": trls} | dict.fromkeys(padded, ours)
    for mode, way in ways.items():
        way.step(plan[0][:1], mode)  # makes optimizer states and warms up
    steps: Steps = {mode: [] for mode in ways}
    gap = 0.0
    for number, rows in enumerate(plan):
        ours.warm(rows)
        order = list(ways)
        # nobody is always first
        for mode in order[number % len(order) :] + order[: number % len(order)]:
            step = ways[mode].step(rows, mode)
            steps[mode].append(step)
            print(f"  {shape} {number + 1}/{rounds} {mode}: {step.seconds:.2f} s", file=sys.stderr, flush=True)
        losses = [values[-1].loss for values in steps.values()]
        gap = max(gap, max(losses) - min(losses))
    rivals = {mode: steps.pop(mode) for mode in padded}
    best = min(rivals, key=lambda mode: statistics.median(step.seconds for step in rivals[mode]))
    steps["padded"] = rivals[best]
    return shape_report(steps, plan) | {"loss_gap": gap, "padded_rows_per_chunk": int(best.split(":")[1])}


def shape_report(steps: Steps, plan: list[list[Row]]) -> dict[str, Any]:
    """What the JSON says about a shape."""
    total = {way: sum(s.seconds for s in values) for way, values in steps.items()}
    nodes = sum(map(trie_nodes, plan))
    per_node = {way: sum(s.positions for s in values) / nodes for way, values in steps.items()}
    head = (total["trl"] - total["trl_compact"]) / (total["trl"] - total["ours"])
    return {
        "batch": len(plan[0]),
        "rounds": len(plan),
        "vs_trl": ratio(steps, "trl"),
        "vs_trl_compact_head": ratio(steps, "trl_compact"),
        "trl_cpu_head_share": 0.0 if torch.cuda.is_available() else head,
        "vs_padded": ratio(steps, "padded"),
        "warm_vs_trl": ratio(steps, "trl", "ours_warm"),
        "warm_vs_ours": ratio(steps, "ours", "ours_warm"),
        "cpu_time": {
            "vs_trl": ratio(steps, "trl", cpu=True),
            "vs_trl_compact_head": ratio(steps, "trl_compact", cpu=True),
            "vs_padded": ratio(steps, "padded", cpu=True),
        },
        "tokens_per_unique": per_node["ours"],
        "trl_tokens_per_unique": per_node["trl"],
        "padded_tokens_per_unique": per_node["padded"],
        "seconds": {way: spread([s.seconds for s in values]) for way, values in steps.items()},
        "pairs_per_second": {way: sum(map(len, plan)) / seconds for way, seconds in total.items()},
    }


def both_models(folder: str) -> tuple[Any, Any]:
    """Our trainer and TRL's, with equal policies and equal references that differ a little from them."""
    from ways import Ours, Trl, llama

    policy, reference = llama(VOCABULARY, 0), llama(VOCABULARY, 1)
    with torch.no_grad():
        for mine, start in zip(policy.parameters(), reference.parameters(), strict=True):
            mine.lerp_(start, 0.95)
    return Ours(policy, reference, folder), Trl(policy, reference, folder)


# ---- memory, in processes of their own


def measure_memory(shape: str) -> dict[str, Any]:
    """Peaks of a step with a vocabulary of 128k, each way in a fresh process."""
    peaks = {}
    for mode in ("ours", "trl"):
        command = [sys.executable, __file__, "--peak-of", mode, "--shapes", shape]
        command += ["--threads", str(torch.get_num_threads())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {"skipped": f"{mode}: {done.stderr.strip().splitlines()[-1]}"}
        peaks[mode] = json.loads(done.stdout.splitlines()[-1])
        print(f"  memory {mode}: {peaks[mode]['peak_mib']:.0f} MiB", file=sys.stderr, flush=True)
    return {
        "vocabulary": MEMORY_VOCABULARY,
        "rows": shape,
        "vs_trl": peaks["ours"]["peak_mib"] / peaks["trl"]["peak_mib"],
        "peak_mib_above_weights": {mode: peak["peak_mib"] for mode, peak in peaks.items()},
        "weights_mib": peaks["ours"]["weights_mib"],
    }


def peak_of(mode: str, shape: str) -> dict[str, float]:
    """Peak in MiB above policy and reference over two whole steps, so optimizer state and gradients are counted."""
    from ways import Ours, Trl, llama

    rows = batches(shape, 1, VOCABULARY)[0]
    policy, reference = llama(MEMORY_VOCABULARY, 0), llama(MEMORY_VOCABULARY, 0)
    weights = 2 * sum(p.numel() * p.element_size() for p in policy.parameters()) / 2**20
    with tempfile.TemporaryDirectory() as folder:
        way = (Ours if mode == "ours" else Trl)(policy, reference, folder)
        del policy, reference
        gc.collect()
        # loading and the start-up probe leave optimizer state and free heap behind; neither is a loaded weight
        way.trainer.optimizer.state.clear()
        before = _used(reset=True)
        for _ in range(2):
            way.step(rows, mode)
        return {"peak_mib": (_used(peak=True) - before) / 2**20, "weights_mib": weights}


def _used(*, reset: bool = False, peak: bool = False) -> int:
    """Bytes in use now, or at most since the last reset: of the GPU, else of this process (Linux)."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if reset:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is used now
    field = "VmHWM:" if peak else "VmRSS:"
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(field) + 1]) * 1024


# ---- the report


def about() -> dict[str, Any]:
    """Machine and versions."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "dtype": "bfloat16 autocast" if cuda else "float32",
        "model": f"Llama, 8 layers, hidden 512, vocabulary {VOCABULARY}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "accelerate")},
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""

    def show(x: dict[str, float]) -> str:
        return f"{x['median']:.2f} ({x['min']:.2f} to {x['max']:.2f})"

    lines = [f"{report['about']['device']}, {report['about']['dtype']}; median (min to max) over rounds"]
    for title, shape in report["shapes"].items():
        if "skipped" in shape:
            lines.append(f"{title}: skipped, {shape['skipped']}")
            continue
        lines += [
            f"{title}: {shape['pairs_per_second']['ours']:.2f} pairs/s, TRL {shape['pairs_per_second']['trl']:.2f}",
            f"  times as fast as TRL                      {show(shape['vs_trl'])}",
            f"  ... as TRL with its head on answers only  {show(shape['vs_trl_compact_head'])}",
            f"  ... as padded rows with our head          {show(shape['vs_padded'])}",
            f"  as TRL, as padded rows, in processor time {show(shape['cpu_time']['vs_trl'])},"
            f" {show(shape['cpu_time']['vs_padded'])}",
            f"  with the store warm, as TRL               {show(shape['warm_vs_trl'])}",
            f"  tokens computed per node of the trie      {shape['tokens_per_unique']:.3f}"
            f" (padded {shape['padded_tokens_per_unique']:.2f}, TRL {shape['trl_tokens_per_unique']:.2f})",
            f"  TRL's head on all positions explains      {shape['trl_cpu_head_share']:.0%} of the time saved",
        ]
    memory = report.get("memory", {})
    if "vs_trl" in memory:
        peaks = memory["peak_mib_above_weights"]
        lines.append(
            f"memory at a vocabulary of 128k: {memory['vs_trl']:.2f} of TRL's "
            f"({peaks['ours']:.0f} and {peaks['trl']:.0f} MiB above {memory['weights_mib']:.0f} MiB of weights)"
        )
    elif memory:
        lines.append(f"memory: skipped, {memory['skipped']}")
    return "\n".join(lines)


def measure(shapes: list[str], rounds: int, *, memory: bool) -> dict[str, Any]:
    """The whole report."""
    report: dict[str, Any] = {"about": about(), "shapes": {}}
    if memory:
        # before anything large is loaded here
        report["memory"] = measure_memory("hh" if "hh" in shapes and hh_file().exists() else "chat")
    with tempfile.TemporaryDirectory() as folder:
        models = both_models(folder)
        for shape in shapes:
            report["shapes"][shape] = measure_shape(shape, rounds, models)
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=3, help="batches per shape")
    parser.add_argument("--shapes", default=",".join(NAMES), help=f"of {','.join(NAMES)}")
    # threads that wait for each other suffer most from other programs, and ratios are what counts
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU (default 1)")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory part out")
    parser.add_argument("--peak-of", choices=("ours", "trl"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    shapes = args.shapes.split(",")
    if unknown := [shape for shape in shapes if shape not in NAMES]:
        parser.error(f"no shape is called {unknown[0]}; there are {', '.join(NAMES)}")
    if not torch.cuda.is_available():
        torch.set_num_threads(args.threads)
    if args.peak_of:
        with contextlib.redirect_stdout(sys.stderr):
            peak = peak_of(args.peak_of, shapes[0])
        print(json.dumps(peak))
        return 0
    with contextlib.redirect_stdout(sys.stderr):  # the trainers talk; standard output is for the result
        report = measure(shapes, args.rounds, memory=not args.no_memory)
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
