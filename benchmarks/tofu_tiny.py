"""Thirteen ways to unlearn real TOFU authors from a tiny model: forget quality beside utility, on three seeds.

    python benchmarks/tofu_tiny.py              the table and what it must show
    python benchmarks/tofu_tiny.py --json       the numbers
    python benchmarks/tofu_tiny.py --choose     the learning rates, tried on seeds 0 and 1

Every seed makes a new Llama, teaches it language and common facts (base), and from there TOFU's authors with (full) and
without (retain, on two fine-tuning seeds) the five to forget. Each method unlearns these from ``full`` in a fixed
number of steps, of which the last counts. Settings were chosen on seeds 0 and 1, the learning rates by one rule for all
methods (see ``pick``; GradAscent has NPO's); seed 2 was run once afterwards. One thread. Models and readings stay in
``--out``, and ``--resume`` goes on there. Data: ``ALIGN_TEST_DATA`` (default ``../shared/data``), folder tofu.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets.utils.logging import disable_progress_bar
from tofu_tiny_models import SHOWN, TAUGHT, Method, Models, Reading, Size, data_folder
from transformers.utils import logging as transformers_logging

SEEDS = (0, 1, 2)
CHOSEN_ON = (0, 1)  # seeds that settings were chosen on
RATES = (1e-4, 3e-4, 1e-3)
UTILITIES = ("utility_retain", "model_utility")
ENOUGH = 0.8  # of the full model's retain part of the utility, which a chosen rate of a method with a retain term keeps
COLLAPSED = 0.1  # of the full model's utility

_RETAIN = {"name": "nll", "branch": "retain"}
_KL = {"name": "kl", "branch": "retain"}
_FLAT = {"name": "flat", "divergence": "kl"}
# npo, idk_dpo and kto add log-probs up over an answer. The retain term beside them does likewise, as NPO's paper writes
# it; the mean over tokens in its code would weigh 60 times less here
_RETAIN_SUM, _KL_SUM = {**_RETAIN, "norm": "sum"}, {**_KL, "norm": "sum"}

METHODS = {
    # at NPO's rate, to be compared with it; the rule picks 1e-4, see docs/benchmarks.md
    "GradAscent": Method({"name": "grad_ascent"}, 3e-4),
    "GradDiff": Method([{"name": "grad_ascent"}, _RETAIN], 1e-4),
    "GA+KL": Method([{"name": "grad_ascent"}, _KL], 1e-4),
    "NPO": Method({"name": "npo", "beta": 0.02}, 3e-4),
    "NPO+retain": Method([{"name": "npo", "beta": 0.02}, _RETAIN_SUM], 1e-3),
    "NPO+KL": Method([{"name": "npo", "beta": 0.02}, _KL_SUM], 1e-3),
    "FLAT(KL)": Method(_FLAT, 1e-3),
    "FLAT(KL)+retain": Method([_FLAT, _RETAIN], 1e-3),
    "SimNPO+retain": Method([{"name": "simnpo", "beta": 4.5, "weight": 0.125}, _RETAIN], 1e-3),
    "IdkDPO+retain": Method([{"name": "idk_dpo", "beta": 0.02}, _RETAIN_SUM], 1e-3),
    "WGA+retain": Method([{"name": "wga"}, _RETAIN], 1e-3),
    "RMU": Method({"name": "rmu", "layer": 0, "steering": 20.0}, 1e-4),
    "KTO+retain": Method([{"name": "kto_forget", "beta": 0.02}, _RETAIN_SUM], 3e-4),
}


def measure(folder: Path, seed: int, methods: Mapping[str, Method], size: Size) -> dict[str, Reading]:
    """Readings of the full, the retain and the second retain model and of every method, in this order."""
    models = Models(folder / f"seed-{seed}", seed, size)
    models.teach()
    out: dict[str, Reading] = {}
    for title in (*TAUGHT, *methods):
        began = time.process_time()
        out[title] = models.reading(models.unlearn(title, methods[title]) if title in methods else title)
        seconds = time.process_time() - began
        figures = "  ".join(f"{name} {short(out[title][key])}" for key, name in SHOWN.items())
        print(f"  seed {seed}  {title:22} {figures}  ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return out


def statements(found: Mapping[str, Reading]) -> dict[str, bool | None]:
    """What one seed must show; None where a method was not run."""
    full, ascent = found["full"], found.get("GradAscent")
    ruined = None if ascent is None else all(ascent[key] < COLLAPSED * full[key] for key in UTILITIES)
    return {
        "full against retain: forget quality below 1e-3": full["forget_quality"] < 1e-3,
        "retain against retain: forget quality above 0.05": found["retain-again"]["forget_quality"] > 0.05,
        f"GradAscent: less than {COLLAPSED:.0%} of both utilities is left": ruined,
    }


def choose(folder: Path, names: Sequence[str], seeds: Sequence[int], size: Size) -> dict[str, Any]:
    """Each method at every rate, worst case over the seeds, and the rate that one rule picks."""
    tried = {f"{name} {rate:g}": replace(METHODS[name], learning_rate=rate) for name in names for rate in RATES}
    found = [measure(folder, seed, tried, size) for seed in seeds]
    out: dict[str, dict[str, Reading]] = {}
    for title in tried:
        name, rate = title.split()
        quality = min(one[title]["forget_quality"] for one in found)
        kept = min(one[title]["utility_retain"] / one["full"]["utility_retain"] for one in found)
        out.setdefault(name, {})[rate] = {"forget_quality": quality, "kept": kept}
    return {
        name: {"tried": rates, "chosen": pick(rates, ENOUGH if "retain" in METHODS[name].branches() else 0)}
        for name, rates in out.items()
    }


def pick(rates: Mapping[str, Reading], enough: float) -> str:
    """The rate with the greatest forget quality among those that keep ``enough`` of the utility's retain part.

    Where none does, the one that keeps most. Methods that read no retained rows cannot keep it and are picked with 0.
    """
    good = [rate for rate, found in rates.items() if found["kept"] >= enough]
    if good:
        return max(good, key=lambda rate: rates[rate]["forget_quality"])
    return max(rates, key=lambda rate: rates[rate]["kept"])


def report_of(
    found: Mapping[int, Mapping[str, Reading]], methods: Mapping[str, Method], seconds: float | None
) -> dict[str, Any]:
    """The numbers as plain JSON; ``seconds`` is the processor time that they took, None where some were there."""
    return {
        "about": {
            "date": datetime.date.today().isoformat(),
            "device": f"CPU, {torch.get_num_threads()} thread",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "processor_seconds": seconds,
        },
        "learning_rates": {name: method.learning_rate for name, method in methods.items()},
        "seeds": {
            str(seed): {
                "settings_chosen_on_it": seed in CHOSEN_ON,
                "readings": one,
                "statements": statements(one),
            }
            for seed, one in found.items()
        },
    }


def table(report: Mapping[str, Any]) -> str:
    """The report for people. A method's row has forget quality and, beside it, what it cost."""
    seeds = report["seeds"]
    rates = report["learning_rates"]
    titles = list(next(iter(seeds.values()))["readings"])
    n = int(next(iter(seeds.values()))["readings"]["full"]["n"])
    marks = [seed if part["settings_chosen_on_it"] else f"{seed}*" for seed, part in seeds.items()]
    wide = 8 * len(seeds)
    lines = [
        f"{n} rows to forget; the last step is reported; settings were chosen on seeds 0 and 1",
        f"{'':18}{'rate':>7}" + "".join(f"  {name:>{max(wide, len(name))}}" for name in SHOWN.values()),
        f"{'seed':18}{'':>7}"
        + "".join(f"  {''.join(f'{m:>8}' for m in marks):>{max(wide, len(name))}}" for name in SHOWN.values()),
    ]
    for title in titles:
        line = f"{title:18}{rates.get(title, ''):>7}"
        for key, name in SHOWN.items():
            cells = "".join(f"{short(part['readings'][title][key]):>8}" for part in seeds.values())
            line += f"  {cells:>{max(wide, len(name))}}"
        lines.append(line)
    lines += ["  * untouched: no setting was chosen on it", ""]
    words = {True: "holds", False: "does not hold", None: "not run"}
    for text in next(iter(seeds.values()))["statements"]:
        said = (f"seed {m} {words[part['statements'][text]]}" for m, part in zip(marks, seeds.values(), strict=True))
        lines.append(f"{text}: {', '.join(said)}")
    return "\n".join(lines)


def short(value: float) -> str:
    """Two digits behind the point, or powers of ten where those would say nothing."""
    return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.0e}".replace("e-0", "e-")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2, to choose 0 1")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--choose", action="store_true", help="try the learning rates instead, and print JSON")
    parser.add_argument("--out", type=Path, default=Path("runs/tofu_tiny"), help="folder of the models")
    parser.add_argument("--resume", action="store_true", help="take what an interrupted run left in that folder")
    args = parser.parse_args(argv)
    if not data_folder().is_dir():
        print(f"skipped: {data_folder()} is not there; set ALIGN_TEST_DATA to the folder that holds tofu")
        return 0
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one
    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # DeepSpeed, where installed, announces on the standard output that there is no GPU
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    if not args.resume:
        for seed in args.seeds or SEEDS:
            shutil.rmtree(args.out / f"seed-{seed}", ignore_errors=True)
    if args.choose:
        print(json.dumps(choose(args.out, args.methods, args.seeds or CHOSEN_ON, Size()), indent=1))
        return 0
    methods = {name: METHODS[name] for name in args.methods}
    found: dict[int, dict[str, Reading]] = {}
    for seed in args.seeds or SEEDS:
        found[seed] = measure(args.out, seed, methods, Size())
        report = report_of(found, methods, None if args.resume else time.process_time())
        (args.out / "report.json").write_text(json.dumps(report, indent=1))  # a late stop leaves the seeds so far
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
