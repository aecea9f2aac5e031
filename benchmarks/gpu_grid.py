"""Forward and backward of pairs with the prompt once and with the prompt for each answer, beside the ideal ratio.

Both are ours and differ in nothing but that. No reference and no optimizer, as in the figures of flash-preference. In a
process of its own; ``gpu.py`` starts it.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from gpu_step import adapter, device, now
from peft import get_peft_model
from shapes import SHAPES, Shape

from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.engine.probe import probe
from align.engine.scoring import Mode, ScoringEngine, attach

PAIRS = (1, 4)
ENOUGH = 2.0  # seconds after which a point is not repeated again
MOST = 6  # repetitions
MODES: tuple[Mode, ...] = ("tree", "padded")


def examples(shape: Shape, prompt: int, answer: int, pairs: int) -> TreeBatch:
    """Pairs of random tokens, all of one length."""
    source = random.Random(f"{prompt} {answer} {pairs}")

    def ids(count: int) -> list[int]:
        return [source.randrange(2, shape.vocabulary) for _ in range(count)]

    names = ("chosen", "rejected")
    trees = [Tree(ids(prompt), tuple(Branch(name, ids(answer)) for name in names)) for _ in range(pairs)]
    return pack([Example((tree,)) for tree in trees])


class Grid:
    """A model ready to be trained, and the engine that scores it in either mode."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        model: Any = shape.model(device())
        if shape.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        if (config := adapter(shape)) is not None:
            model = get_peft_model(model, config)
        attach(model)
        self.model = model.train()
        self.engine = ScoringEngine(rows_per_chunk=2)
        with self._autocast():
            self.chosen = probe(self.engine, model, device(), compute_dtype=torch.bfloat16)

    @staticmethod
    def _autocast() -> torch.autocast:
        return torch.autocast(device().type, torch.bfloat16)

    def seconds(self, batch: TreeBatch, mode: Mode) -> float:
        """Of one forward and backward of the summed log-probs: the shortest of a few, or the only one of a long one."""
        self.engine.mode = mode
        taken: list[float] = []
        while len(taken) < MOST and sum(taken) < ENOUGH:
            began = now()
            with self._autocast():
                loss = -self.engine(self.model, batch).tokens["logp"].sum()
            loss.backward()
            self.model.zero_grad(set_to_none=True)
            taken.append(now() - began)
        return min(taken)

    def point(self, prompt: int, answer: int, pairs: int) -> dict[str, Any]:
        batch = examples(self.shape, prompt, answer, pairs).to(device())
        found: dict[str, Any] = {"prompt": prompt, "answer": answer, "pairs": pairs}
        for mode in MODES:
            try:
                found[mode] = self.seconds(batch, mode)
            except torch.OutOfMemoryError as error:
                found["out_of_memory"] = f"{mode}: {str(error).split('. ')[0]}"
            # behind the except block, whose traceback holds the tensors
            if mode not in found:
                self.model.zero_grad(set_to_none=True)
                gc.collect()
                torch.cuda.empty_cache()
        if all(mode in found for mode in MODES):
            ideal = self.shape.ideal_ratio(prompt, answer)
            found |= {"ratio": found["padded"] / found["tree"], "ideal": ideal}
            found["share_of_ideal"] = found["ratio"] / ideal
        return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file, written anew for each point")
    args = parser.parse_args(argv)
    shape = SHAPES[args.shape]
    grid = Grid(shape)
    points: list[dict[str, Any]] = []
    for pairs in PAIRS:
        for prompt, answer in shape.grid:
            points.append(grid.point(prompt, answer, pairs))
            args.out.write_text(json.dumps({"mode": grid.chosen.mode, "points": points}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
