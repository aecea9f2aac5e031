"""One process that takes two plain steps and writes how each moved the weights: minus their gradients.

    python tests/distributed/gradient_worker.py FOLDER CASE...

FOLDER holds ``model/``. Process 0 writes ``<LABEL>-<case>.safetensors``; LABEL is ALIGN_TEST_LABEL of the environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from distributed.cases import run_cases
from peft import LoraConfig
from safetensors.torch import save_file
from saved_model import rows, tokenizer
from transformers import TrainerCallback

from align.compat import training_config
from align.objectives import DPO, KL, SimPO, WeightedSum
from align.trainers.preference import PreferenceTrainer

RATE = 0.5
OBJECTIVES = {
    "simpo": SimPO(),
    "dpo": DPO(beta=1.0),
    "kl": WeightedSum(((DPO(beta=1.0), 1.0), (KL(branch="chosen"), 1.0))),
}


class Moves(TrainerCallback):
    """The weights that DeepSpeed or torch steps on, before training and after every step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.seen: list[dict[str, torch.Tensor]] = []

    def look(self) -> None:
        from deepspeed.utils import safe_get_full_fp32_param

        found = {}
        for name, parameter in self.trainer.model.named_parameters():
            if parameter.requires_grad:
                wide = safe_get_full_fp32_param(parameter) if DEEPSPEED else parameter.detach()
                found[name] = wide.float().clone()
        self.seen.append(found)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.look()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.look()


DEEPSPEED = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def run(folder: Path, label: str, case: str) -> None:
    name, how = case.split("-")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = training_config(
        output_dir=str(folder / "out"), per_device_train_batch_size=4 // world, gradient_accumulation_steps=2,
        max_steps=2, optim="sgd", learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=0.0, bf16=True,
        use_cpu=True, gradient_checkpointing=False, save_strategy="no", report_to="none", disable_tqdm=True, seed=7,
    )  # fmt: skip
    trainer = PreferenceTrainer(
        str(folder / "model"),
        OBJECTIVES[name],
        args,
        train_dataset=Dataset.from_list(rows(16)),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear") if how == "lora" else None,
    )
    moves = Moves(trainer)
    trainer.add_callback(moves)
    trainer.train()
    if trainer.accelerator.is_main_process:
        pairs = enumerate(zip(moves.seen, moves.seen[1:], strict=False))
        steps = {f"{i}.{n}": (a[n] - b[n]) / RATE for i, (a, b) in pairs for n in a}
        save_file(steps, folder / f"{label}-{case}.safetensors")


if __name__ == "__main__":
    run_cases(run)
