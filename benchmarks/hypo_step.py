"""One HyPO step beside a DPO step on the same pairs and weights; a part of ``sampling.py``."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from datasets import Dataset
from preference_step import spread
from rows import made_rows
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from ways import Way, common

from align.compat import training_config
from align.objectives import DPO, HyPO
from align.recipe.sampling import Sampling
from align.trainers.hypo import HyPOTrainer
from align.trainers.preference import PreferenceTrainer

ROWS, SAMPLES = 4, 2  # pairs of a step, and the samples that HyPO draws for each


class Ours(Way):
    """One of our trainers; nothing is kept of the reference, whose forward both pay for."""

    def mode(self, mode: str) -> Any:
        return torch.enable_grad()


def measure_step(shape: str, rounds: int, size: Any) -> dict[str, Any]:
    """Seconds of whole steps (samples, reference, policy, backward, optimizer), and the share that drawing takes."""
    batches = [made_rows(shape, ROWS, size.vocabulary, number) for number in range(rounds + 1)]
    start, drawn = size.model(), Sampling(samples=SAMPLES, max_new_tokens=size.new_tokens, batch_size=ROWS * SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        options = {"train_dataset": Dataset.from_list(batches[0]), "processing_class": _tokenizer(size.vocabulary)}
        args = training_config(**common(folder))
        ways = {
            "dpo": Ours(PreferenceTrainer(_again(start), DPO(), args, **options)),
            "hypo": Ours(HyPOTrainer(_again(start), HyPO(kl_weight=0.1), args, sampling=drawn, **options)),
        }
        for way in ways.values():
            way.step(batches[0], "warm-up")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        positions = dict.fromkeys(ways, 0)
        for number, batch in enumerate(batches[1:]):
            for name in sorted(ways, reverse=bool(number % 2)):
                step = ways[name].step(batch, name)
                seconds[name].append(step.seconds)
                positions[name] += step.positions
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "times_as_long": spread([h / d for h, d in zip(seconds["hypo"], seconds["dpo"], strict=True)]),
        "positions": positions,
    }


def _again(model: Any) -> Any:
    made = type(model)(copy.deepcopy(model.config)).to(model.device)
    made.load_state_dict(model.state_dict())
    return made


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")
