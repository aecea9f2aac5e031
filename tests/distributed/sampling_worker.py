"""One process that samples from the policy of a trainer, however it is wrapped.

    python tests/distributed/sampling_worker.py FOLDER

FOLDER holds ``model/``. Every process draws for its share of the prompts, then the first one for all of them, and
writes ``<LABEL>-<rank>.json``, LABEL being the environment's ALIGN_TEST_LABEL.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from align.compat import training_config
from align.data.tokens.samples import prompt_key
from align.models.whole import for_generation
from align.objectives import NLL
from align.recipe.sampling import Sampling
from align.runs.processes import leave_together
from align.sampling.sampler import Sampler
from align.trainers.base import AlignTrainer

SETTINGS = Sampling(samples=3, max_new_tokens=10, batch_size=4, temperature=0.9, top_p=0.95, stop=["w7", "w33 "])
# the last two leave room for less than ten tokens
LENGTHS = (5, 1, 9, 3, 12, 7, 4, 18, 20)


# for each draw: whether all weights are whole on this process behind it, and cut up once it is over
WHOLE: list[tuple[bool, bool]] = []


def is_cut_up(weight: torch.Tensor) -> bool:
    """Whether this process has a piece of a weight alone."""
    return hasattr(weight, "to_local") or (hasattr(weight, "ds_id") and weight.numel() == 0)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 97, (length,), generator=generator).tolist() for length in LENGTHS]


def trained(folder: Path) -> AlignTrainer:
    """A trainer on the saved model, wrapped as it trains; its step changes nothing."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rows = [{"prompt_ids": [5, 6, 7 + i], "forget_ids": [8, 9 + i]} for i in range(4)]
    args = training_config(
        output_dir=str(folder / "out"), per_device_train_batch_size=4 // world, max_steps=1, learning_rate=0.0,
        report_to="none", save_strategy="no", disable_tqdm=True, bf16=False, gradient_checkpointing=True,
        use_cpu=True,
    )  # fmt: skip
    trainer = AlignTrainer(str(folder / "model"), NLL(branch="forget"), args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    return trainer


def draw(trainer: AlignTrainer, sampler: Sampler, rows: list[int]) -> dict[str, Any]:
    chosen = [prompts()[row] for row in rows]
    keys = [prompt_key(ids, row) for ids, row in zip(chosen, rows, strict=True)]
    in_step = trainer.engine.sharded and trainer.accelerator.num_processes > 1
    with for_generation(trainer.model_wrapped, trainer.accelerator) as plain, torch.no_grad():
        plain.eval()
        found = sampler(plain, chosen, keys, 3, device=trainer.args.device, in_step=in_step)
        whole = not any(map(is_cut_up, plain.parameters()))
    WHOLE.append((whole, all(map(is_cut_up, trainer.model_wrapped.parameters()))))
    return {str(row): [astuple(s) for s in samples] for row, samples in zip(rows, found, strict=True)}


def main() -> None:
    folder, label = Path(sys.argv[1]), os.environ["ALIGN_TEST_LABEL"]
    trainer = trained(folder)
    accelerator = trainer.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    sampler = Sampler(SETTINGS, trainer.processing_class, seed=11)
    rows = list(range(len(LENGTHS)))
    out = {
        "world": world,
        "sharded": trainer.engine.sharded,
        "shared": draw(trainer, sampler, rows[rank::world]),
        "first": draw(trainer, sampler, rows if rank == 0 else []),
        "shares_prompts": sampler.shares_prompts,
        "whole": WHOLE,
    }
    (folder / f"{label}-{rank}.json").write_text(json.dumps(out))
    leave_together()


if __name__ == "__main__":
    main()
