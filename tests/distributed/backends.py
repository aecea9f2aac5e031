"""Every method on every backend against one process, and the table of that in docs/launch.md.

    PYTHONPATH=tests python tests/distributed/backends.py FOLDER

trains what FOLDER has no results of yet, a few minutes for each backend, and writes the table between its markers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from distributed.launching import CONFIGS, ROOT, SINGLE, launch, save_models

from align.sampling.files import read_tables
from align.versions import installed

METHODS = {
    "dpo": "DPO",
    "rpo": "RPO",
    "npo": "NPO and retain",
    "flat": "FLAT",
    "rmu": "RMU",
    "hypo": "HyPO",
    "superhf": "SuperHF",
    "reward": "reward model",
}
WAYS = {"full": "full", "lora": "LoRA"}
IN_BF16 = ("dpo", "npo")
BACKENDS = {"ddp": "DDP", "fsdp2": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
CELLS = (
    *(f"cell-{method}-{way}" for method in METHODS for way in WAYS),
    *(f"cell-{method}-{way}-bf16" for method in IN_BF16 for way in WAYS),
)
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDPModule",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
}
SHORT = {  # a method for each backend, where there is time for no more
    "ddp": ("cell-hypo-full", "cell-superhf-lora"),
    "fsdp2": ("cell-superhf-full",),
    "zero2": ("cell-dpo-lora", "cell-npo-full-bf16"),
    "zero3": ("cell-rmu-lora",),
}
PAGE = ROOT / "docs/launch.md"
MARKERS = ("<!-- backends -->", "<!-- end of backends -->")


class Cell(NamedTuple):
    """One method on one backend.

    Attributes:
        loss: largest difference of a step's loss to the single process, in units of max(1, |loss|).
        gradient: difference of the first gradient's norm, relative: both have the same weights there.
        moved: how far the single process's loss went from its first step, in the units of ``loss``.
        gap: mean distance of policy and reference at the start, in nats per token; 0 without a reference.
        samples: whether all processes together drew what the single one did; None where nothing is drawn.
        wrapper: names of the classes of the model that was trained.
        peak: the most memory of a rank, in bytes, the program itself included.
        tensors: what weights, gradients, optimizer and reference take of it on the first rank.
    """

    loss: float
    gradient: float
    moved: float
    gap: float
    samples: bool | None
    wrapper: list[str]
    peak: int
    tensors: int

    @classmethod
    def of(cls, folder: Path, label: str, case: str) -> Cell:
        one, found = (json.loads((folder / f"{name}-{case}.json").read_text()) for name in (SINGLE, label))
        pairs = list(zip(found["loss"], one["loss"], strict=True))
        samples = [drawn(folder / f"{name}-{case}") for name in (SINGLE, label)]
        return cls(
            max(abs(mine - theirs) / max(1.0, abs(theirs)) for mine, theirs in pairs),
            abs(found["grad_norm"][0] / one["grad_norm"][0] - 1),
            max(abs(loss - one["loss"][0]) / max(1.0, abs(loss)) for loss in one["loss"]),
            found["start_gap"] or 0.0,
            samples[0] == samples[1] if samples[0] else None,
            found["wrapper"],
            max(rank["peak"] for rank in found["ranks"]),
            sum(size for part, size in found["ranks"][0]["tensors"].items() if part != "coming"),
        )


def allowed(case: str) -> tuple[float, float]:
    """What ``Cell.loss`` and ``Cell.gradient`` may be: rounding, of 24 bits or of 8."""
    # FSDP and DeepSpeed compute with weights in bfloat16 and reduce gradients so, a single process does neither
    return (1e-2, 1e-2) if case.endswith("bf16") else (1e-5, 1e-5)


def check(folder: Path, label: str, cases: tuple[str, ...]) -> None:
    """Assert that results of cells agree with the single process's."""
    for case in cases:
        cell, alone = (Cell.of(folder, name, case) for name in (label, SINGLE))
        loss, gradient = allowed(case)
        assert cell.loss <= loss, case
        assert cell.gradient <= gradient, case
        assert cell.gap <= 1e-5, case
        assert WRAPPERS[label] in cell.wrapper, case
        assert cell.samples is (True if {"hypo", "superhf"} & set(case.split("-")) else None), case
        ranks = {file.stem[-2:] for file in (folder / f"{label}-{case}/samples").glob("*")}
        assert ranks == ({"r0", "r1"} if cell.samples else set()), case
        # a loss that stands still would agree as well
        assert cell.moved > (2 if case.endswith("bf16") else 50) * loss, case
        assert cell.tensors == alone.tensors if label == "ddp" else cell.tensors < 0.95 * alone.tensors, case


def drawn(run: Path) -> dict[tuple, tuple]:
    """What a run drew, by step, prompt and sample."""
    rows = read_tables(sorted((run / "samples").glob("*.parquet")))
    return {(r["step"], tuple(r["prompt_ids"]), r["index"]): (tuple(r["ids"]), r["selected"]) for r in rows}


def _named(case: str) -> str:
    _, method, way, *precision = case.split("-")
    return f"| {METHODS[method]} | {WAYS[way]} | {'bfloat16' if precision else 'float32'} |"


def _rows(folder: Path, labels: list[str], shown: Callable[[str, str], str]) -> list[str]:
    return [" ".join((_named(case), *(f"{shown(label, case)} |" for label in labels))) for case in CELLS]


def table(folder: Path) -> str:
    """Both tables as Markdown, from the results in a folder."""
    cells = {(label, case): Cell.of(folder, label, case) for label in (SINGLE, *BACKENDS) for case in CELLS}
    wrappers = {label: {cells[label, case].wrapper[0] for case in CELLS} for label in BACKENDS}

    def losses(label: str, case: str) -> str:
        if label == SINGLE:
            return f"{cells[label, case].moved:.1e}"
        return f"{cells[label, case].loss:.1e}"

    def memory(label: str, case: str) -> str:
        cell = cells[label, case]
        return f"{cell.peak / 2**20:,.0f}, {cell.tensors / 2**10:,.0f}"

    head = "| method | weights | precision |"
    names = "".join(f" {name} |" for name in BACKENDS.values())
    lines = [
        f"{head} 1 process: moved |{names}",
        "|---" * (4 + len(BACKENDS)) + "|",
        *_rows(folder, [SINGLE, *BACKENDS], losses),
        "",
        "Trained was, as seen on the model that the step calls: "
        + "; ".join(f"{BACKENDS[label]} {', '.join(sorted(names))}" for label, names in wrappers.items())
        + ".",
        "",
        f"{head} 1 process |{names}",
        "|---" * (4 + len(BACKENDS)) + "|",
        *_rows(folder, [SINGLE, *BACKENDS], memory),
        "",
        f"Versions: {', '.join(f'{name} {installed(name)}' for name in _PACKAGES)}; two processes on a CPU, gloo.",
    ]
    return "\n".join(lines)


_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "deepspeed")


def write(page: Path, text: str) -> None:
    """Put a table between the markers of a page."""
    begin, end = MARKERS
    before, _, rest = page.read_text().partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    folder = Path(sys.argv[1])
    if not (folder / "model").exists():
        save_models(folder)
    for label in (SINGLE, *CONFIGS):
        launch(folder, label, CELLS)
    write(PAGE, table(folder))


if __name__ == "__main__":
    main()
