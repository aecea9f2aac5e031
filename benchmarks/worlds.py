"""The generated world's models and pairs for benchmarks of online methods; made once for a folder."""

from __future__ import annotations

from pathlib import Path

from align.data.rows import world
from align.recipes.quickstart.demo import learn, make_pairs
from align.recipes.quickstart.measure import Scorer
from align.recipes.quickstart.running import calm, write_rows

SIZE = world.Size(strangers=8)  # 160 held-out questions instead of the quickstart's 60


def prepared(root: Path, seed: int, size: world.Size = SIZE) -> Path:
    """A folder with ``model``, ``pairs.jsonl`` and ``held_out.jsonl``, which is written last."""
    folder = root / f"seed-{seed}"
    if not (folder / "held_out.jsonl").exists():
        with calm():
            folder.mkdir(parents=True, exist_ok=True)
            made = world.build(seed, size)
            scorer = Scorer(learn(folder, made))
            write_rows(folder / "pairs.jsonl", make_pairs(scorer, world.candidate_rows(made.forget)))
            write_rows(folder / "held_out.jsonl", make_pairs(scorer, world.candidate_rows(made.strangers)))
    return folder
