"""Relearning: plain likelihood on a few of the forgotten rows, all of them in every step, at a constant rate.

Hu et al. (arXiv 2406.13356) showed that a small part of the forget set can bring back the rest. Twenty rows and ten
steps are our choice: a twentieth of TOFU's forget10, seen as often as unlearning sees it (ten epochs). Training writes
to a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.data.rows.questions import prompt_of, reply_of, talks
from align.errors import Stopped, UserError
from align.eval.texts import encode_pairs
from align.eval.tofu_data import Fact
from align.models.load import load_checkpoint
from align.models.subject import Subject

STEPS, ROWS = 10, 20
LEARNING_RATE = 1e-5  # of NPO (arXiv 2404.05868) and of open-unlearning, for models whose own rate is not known
_BUDGET = 4096  # tokens of a micro-batch; more rows than fit are accumulated


@dataclass(frozen=True)
class Relearning:
    """How a model is relearned: ``rows`` forget rows, drawn by ``seed``, all of them in each of ``steps`` steps."""

    steps: int = STEPS
    rows: int = ROWS
    learning_rate: float = LEARNING_RATE
    seed: int = 0

    def drawn(self, count: int) -> np.ndarray:
        """Numbers of the rows out of ``count``, in order. Raises UserError unless some are left."""
        if self.steps < 1 or self.rows < 1 or not self.learning_rate > 0:
            raise UserError("Relearning needs at least one step, one row and a learning rate above 0.")
        if self.rows >= count:
            raise UserError(
                f"Relearning {self.rows} of {count} forget rows leaves none to see whether they come back: take fewer."
            )
        return np.sort(np.random.default_rng(self.seed).choice(count, self.rows, replace=False))


def relearned(
    name: str, facts: list[Fact], relearning: Relearning, *, system: str | None, arguments: Mapping[str, Any] | None
) -> Subject:
    """The model after it was trained on ``facts``: all of its weights in float32, or its adapter.

    Raises:
        Stopped: where the loss diverges.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    from align.compat import training_config
    from align.objectives import NLL
    from align.trainers.base import AlignTrainer

    model, tokenizer = load_checkpoint(name, arguments=arguments)
    if hasattr(model, "peft_config"):
        model.set_adapter(model.active_adapter)  # loaded for inference, and so frozen
    else:
        model.float()
    chat = talks(tokenizer)
    prompts, replies = [prompt_of(f.question, chat) for f in facts], [reply_of(f.answer, chat) for f in facts]
    pairs = encode_pairs(tokenizer, prompts, replies, system=system, where="forget row")
    with tempfile.TemporaryDirectory() as folder:
        args = training_config(
            output_dir=folder,
            per_device_train_batch_size=len(facts),
            max_steps=relearning.steps,
            learning_rate=relearning.learning_rate,
            lr_scheduler_type="constant",
            seed=relearning.seed,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = AlignTrainer(
            model,
            NLL(branch="forget"),
            args,
            train_dataset=Dataset.from_list([{"prompt_ids": p, "forget_ids": ids} for p, ids in pairs]),
            processing_class=tokenizer,
            max_tokens_per_microbatch=max(_BUDGET, *(len(p) + len(ids) for p, ids in pairs)),
        )
        trainer.echo = _silent
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        try:
            trainer.train()
        except Stopped as error:
            rate = relearning.learning_rate
            raise Stopped(f"Relearning {name} diverged: give a --learning-rate below {rate:g}.") from error
    return Subject.of(trainer, name=name, system=system)


def _silent(_: str) -> None:
    pass
