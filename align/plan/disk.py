"""What a run writes, and what the disks that it writes to have."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.plan.batches import Batches
    from align.plan.memory import Memory
    from align.recipe import Recipe


@dataclass(frozen=True)
class Disk:
    """Bytes.

    Attributes:
        model: the trained model or adapter, once.
        checkpoint: one of those that are kept while it trains: weights, and the optimizer's state.
        checkpoints: so many are there at a time, with the one that is being written.
        free: of the disk with the run's directory.
    """

    model: int
    checkpoint: int
    checkpoints: int
    free: int

    @property
    def total(self) -> int:
        return self.model + self.checkpoint * self.checkpoints

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


def disk_of(recipe: Recipe, args: Any, memory: Memory, batches: Batches) -> Disk:
    """What is written to the run's directory."""
    weights, steps = memory.weights, batches.steps
    model = weights.sum("trained_bytes" if recipe.model.lora is not None else "bytes")
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    kept = 0
    if strategy != "no":
        every = args.save_steps if args.save_steps >= 1 else max(1, int(args.save_steps * steps))
        made = batches.epochs if strategy == "epoch" else max(1, -(-steps // int(every)))
        limit = args.save_total_limit
        kept = made if limit is None else min(made, limit + 1)  # one more while a new one is written
    state = 0 if args.save_only_model else memory.optimizer
    return Disk(model, model + state, kept, free_at(recipe.output_dir))


def free_at(folder: Path) -> int:
    """Bytes free on the disk that a folder is on, or will be."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free
