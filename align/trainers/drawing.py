"""Samples of the policy that is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from align.data.tokens.samples import Sample
from align.models.whole import for_generation
from align.sampling.sampler import Sampler


def draw(
    trainer: Any, sampler: Sampler, prompts: Sequence[Sequence[int]], keys: Sequence[int], step: int
) -> list[list[Sample]]:
    """Samples of the policy as it is now, by prompt; every process calls it with prompts of its own, or with none.

    ``keys`` and ``step`` are what the draws are keyed by; see ``Sampler``.
    """
    model = trainer.model_wrapped
    was_training = model.training
    in_step = trainer.engine.sharded and trainer.accelerator.num_processes > 1
    with for_generation(model, trainer.accelerator) as plain, torch.no_grad():
        plain.eval()
        with trainer.accelerator.autocast():
            drawn = sampler(plain, prompts, keys, step, device=trainer.args.device, in_step=in_step)
    model.train(was_training)
    return drawn
