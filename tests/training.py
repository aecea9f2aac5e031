"""Short training runs of tiny models for tests."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from zoo import VOCABULARY, tiny_classifier, tiny_model, token_ids

from align.compat import training_config
from align.judges.judge import ScoreJudge
from align.objectives.base import reads_labels, sources_of
from align.recipe.sampling import Sampling
from align.trainers.base import AlignTrainer
from align.trainers.hypo import HyPOTrainer
from align.trainers.preference import PreferenceTrainer
from align.trainers.reward import RewardModelTrainer
from align.trainers.superhf import SuperHFTrainer

# The Trainer collects garbage at the end of every run; what is imported by now need not be looked through each time.
assert peft.PeftModel
gc.collect()
gc.freeze()


ANCHORS = [(side, who) for side in ("chosen", "rejected") for who in ("initial", "previous")]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one word for each id; prepared rows never need it."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", bos_token="w2")


def pairs(count: int, seed: int = 0) -> Dataset:
    """Prepared pairs of very different lengths, with log-probs under two models that nobody has."""
    ids = token_ids(seed)
    return Dataset.from_list(
        [
            {
                "prompt_ids": ids(1 + 5 * i % 9),
                "chosen_ids": ids(1 + 7 * i % 12),
                "rejected_ids": ids(1 + 3 * i % 10),
                "row": i,
                **{f"{side}_logp_{who}": -1.0 - (i * k) % 7 for k, (side, who) in enumerate(ANCHORS, 1)},
            }
            for i in range(count)
        ]
    )


def forget_rows(count: int, seed: int = 0) -> Dataset:
    """Prepared forget rows with alternates and retain partners, lengths likewise."""
    ids = token_ids(seed)
    return Dataset.from_list(
        [
            {
                "prompt_ids": ids(1 + 5 * i % 6),
                "forget_ids": ids(1 + 5 * i % 7),
                "alternate_ids": ids(1 + 3 * i % 5),
                "retain_prompt_ids": ids(1 + 3 * i % 4),
                "retain_ids": ids(1 + 2 * i % 5),
                "row": i,
            }
            for i in range(count)
        ]
    )


def labelled(count: int, seed: int = 0) -> Dataset:
    """Prepared rows with one labelled answer each, two of three desirable, and a mismatched one; lengths likewise."""
    ids = token_ids(seed)
    rows = []
    for i in range(count):
        answer, other = ids(1 + 7 * i % 12), ids(1 + 3 * i % 10)
        sides = {"desirable_ids": answer, "undesirable_ids": None}
        if i % 3 == 0:
            sides = {"desirable_ids": None, "undesirable_ids": answer}
        rows.append({"prompt_ids": ids(1 + 5 * i % 9), **sides, "mismatch_ids": other, "row": i})
    return Dataset.from_list(rows)


SAMPLING = Sampling(samples=2, max_new_tokens=4, batch_size=3)


class Longest(ScoreJudge):
    """Likes long answers, and words of high numbers."""

    name = "longest"

    def score(self, prompts: Any, responses: Sequence[str]) -> list[float]:
        return [len(text) + sum(int(word[1:]) for word in text.split()) / 100 for text in responses]


def prompts(count: int, seed: int = 0) -> Dataset:
    """Prepared prompts."""
    ids = token_ids(seed)
    rows = [{"prompt_ids": ids(1 + 5 * i % 9), "prompt": json.dumps(f"prompt {i}"), "row": i} for i in range(count)]
    return Dataset.from_list(rows)


def arguments(folder: Path, **changes: Any) -> Any:
    """Plain SGD in float32 on the CPU, every step logged, unless said otherwise."""
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
        **changes,
    }
    return training_config(**values)


def trainer(folder: Path, objective: Any, rows: Dataset | None = None, *, model: Any = None, **options: Any) -> Any:
    """A trainer of a tiny Llama on pairs, or on the rows that the objective reads in their place; options that
    ``PreferenceTrainer`` does not take go into its arguments.
    """
    own = (
        "eval_dataset",
        "layers",
        "reference_sync",
        "peft_config",
        "callbacks",
        "reference",
        "reference_asked",
        "store_dir",
        "order",
        "max_tokens_per_microbatch",
    )
    mine = {k: options.pop(k) for k in own if k in options}
    branches = getattr(objective, "branches", ())
    forgets = not {"forget", "alternate", "retain"}.isdisjoint(sources_of(branches))
    kind: Any = AlignTrainer if forgets else PreferenceTrainer
    kinds = forget_rows if forgets else labelled if reads_labels(branches) else pairs
    if "sample" in branches:
        kind, mine = HyPOTrainer, {"sampling": SAMPLING, **mine}
    elif "survivor" in branches:
        kind, mine = SuperHFTrainer, {"sampling": SAMPLING, "judge": Longest(), **mine}
        rows = prompts(20) if rows is None else rows
    elif getattr(objective, "scores_answers", False):
        kind, model = RewardModelTrainer, tiny_classifier() if model is None else model
        mine.pop("store_dir", None)  # there is no reference
    return kind(
        tiny_model() if model is None else model,
        objective,
        arguments(folder, **options),
        train_dataset=kinds(20) if rows is None else rows,
        processing_class=word_tokenizer(),
        **mine,
    )


def history(trainer: Any, *keys: str) -> list[list[float]]:
    """Logged values by step."""
    return [[entry[key] for key in keys] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer: Any) -> Tensor:
    """All trained parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def same_order(rows: Sequence[Any]) -> Any:
    """Rows as they come, in every epoch."""
    return lambda epoch: list(range(len(rows)))
