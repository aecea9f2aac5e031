"""What DDP, FSDP2 and ZeRO-3 send in a training step, computed: the tables of docs/launch.md. Nothing is measured.

    python benchmarks/communication.py            prints the tables
    python benchmarks/communication.py --write    puts them into docs/launch.md; `make docs` runs it

All collectives are taken as rings, in which each of N GPUs sends (N - 1) / N of the data for a reduce-scatter or an
all-gather, and twice that for an all-reduce (Rajbhandari et al., arXiv 1910.02054, section 7). A step has one
micro-batch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "launch.md"
BEGIN, END = "<!-- communication -->\n", "<!-- end of communication -->\n"

GPUS = (8, 64, 512)
NODE = 8  # GPUs of one machine
WITHIN, BETWEEN = 450e9, 50e9  # bytes a second that a GPU sends: NVLink of an H100, and 400 Gbit/s InfiniBand
MEMORY = 80 * 2**30
ROOM = 0.7  # of the memory for what stays; the rest is for activations, which are not computed here
TOKENS, SPEED = 8192, 4e14  # tokens of a GPU's micro-batch, and FLOP a second that it sustains (0.4 of an H100's bf16)
RANK = 16


@dataclass(frozen=True)
class Shape:
    """A Llama's dimensions; ``kv`` is the width of its keys and values."""

    name: str
    hidden: int
    layers: int
    inner: int
    kv: int
    vocabulary: int
    tied: bool = False

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's seven linear maps."""
        h, i = self.hidden, self.inner
        return [(h, h), (h, self.kv), (h, self.kv), (h, h), (h, i), (h, i), (i, h)]

    @property
    def weights(self) -> int:
        layer = sum(a * b for a, b in self.matrices) + 2 * self.hidden
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + tables + self.hidden

    @property
    def adapter(self) -> int:
        """Weights of LoRA on all linear maps."""
        return self.layers * sum(RANK * (a + b) for a, b in self.matrices)


SHAPES = (
    Shape("1B", 2048, 16, 8192, 512, 128256, tied=True),  # Llama 3.2
    Shape("7B", 4096, 32, 11008, 4096, 32000),  # Llama 2
    Shape("70B", 8192, 80, 28672, 1024, 32000),  # Llama 2
)
BACKENDS = ("DDP", "FSDP2", "ZeRO-3")


def sent(shape: Shape, backend: str, lora: bool, gpus: int) -> float:
    """Bytes that one GPU sends in a DPO step.

    DDP adds up float32 gradients. FSDP2 and ZeRO-3 gather bfloat16 weights for the policy's forward, for its backward
    and for the reference's forward, and reduce bfloat16 gradients to the one who keeps them.
    """
    trained = shape.adapter if lora else shape.weights
    share = (gpus - 1) / gpus
    if backend == "DDP":
        return 2 * share * 4 * trained
    return share * (3 * 2 * shape.weights + 2 * trained)


def stays(shape: Shape, backend: str, lora: bool, gpus: int) -> float:
    """Bytes on each GPU from step to step: weights, gradients, Adam's means and, without an adapter, the reference.

    float32 where all weights are trained, but for what DeepSpeed keeps in bfloat16 beside its float32 copy; under an
    adapter the model is bfloat16 and the adapter float32.
    """
    whole = 2 * shape.weights + 16 * shape.adapter if lora else (4 + 4 + 8 + 4) * shape.weights
    if backend == "DDP":
        return whole
    if backend == "ZeRO-3" and not lora:
        whole = (2 + 2 + 4 + 8 + 2) * shape.weights
    return whole / gpus


def seconds(size: float, gpus: int) -> float:
    """At the speed of the slowest link of the ring, with nothing else on it."""
    return size / (WITHIN if gpus <= NODE else BETWEEN)


def compute(shape: Shape, lora: bool) -> float:
    """Seconds of arithmetic: 2 FLOP a weight and token forward, 4 backward (2 where no weight's gradient is wanted)."""
    return (2 + (2 if lora else 4) + 2) * shape.weights * TOKENS / SPEED


def tables() -> str:
    """Both tables, as Markdown."""
    lines = []
    for lora in (False, True):
        head = "LoRA of rank 16 on all linear maps" if lora else "All weights"
        columns = [f"{backend}, {gpus}" for backend in BACKENDS for gpus in GPUS]
        lines += [f"{head}: GB that a GPU sends in a step, seconds on the link", ""]
        lines += [f"| model | arithmetic | {' | '.join(columns)} |", f"| --- | --- |{' --- |' * len(columns)}"]
        for shape in SHAPES:
            cells = [_cell(shape, backend, lora, gpus) for backend in BACKENDS for gpus in GPUS]
            lines.append(f"| {shape.name} | {compute(shape, lora):.2f} s | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(shape: Shape, backend: str, lora: bool, gpus: int) -> str:
    if (kept := stays(shape, backend, lora, gpus)) > ROOM * MEMORY:
        return f"does not fit ({kept / 2**30:,.0f} GiB)"
    size = sent(shape, backend, lora, gpus)
    return f"{size / 1e9:,.2f} GB, {seconds(size, gpus):.2f} s"


def written(page: str) -> str:
    """The page with the tables of today."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{tables()}{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/launch.md")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print(tables())


if __name__ == "__main__":
    main()
