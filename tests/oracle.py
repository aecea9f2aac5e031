"""Rows, tokenizer, model and settings that the tests against TRL's trainers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sample_rows import PAIR, hh_rows
from tiny import tiny_tokenizer
from training import arguments
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig
from zoo import tiny_model


def short_dialogues(count: int = 16) -> list[dict]:
    """The first short dialogues of the HH-RLHF test split, as text; skips the test where the data are absent."""
    short = [row for row in hh_rows(10_000) if sum(len(text) for text in row.values()) < 320]
    assert len(short) >= count
    return short[:count]


def short_answers(count: int) -> list[dict]:
    """Pairs of the split with the shortest answers of more than a letter or two: float32 rounds their sums least."""
    rows = [r for r in hh_rows(10_000) if len(r["prompt"]) < 150 and all(len(r[name]) > 3 for name in PAIR)]
    return sorted(rows, key=lambda row: max(len(row[name]) for name in PAIR))[:count]


def tokenizer_of(rows: list[dict]) -> PreTrainedTokenizerBase:
    """A tokenizer trained on the rows' own words."""
    return tiny_tokenizer([row["prompt"] + row["chosen"] for row in rows], vocab=400, chat=True)


def oracle_model(tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype = torch.float64) -> Any:
    """A tiny Llama for the tokenizer, with the same weights every time."""
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return tiny_model(
        "llama", dtype=dtype, vocab_size=400, max_position_embeddings=1024, initializer_range=0.1, **special
    )


def dpo_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The arguments of a short run as TRL's DPOConfig takes them."""
    args = arguments(folder, **changes)
    fixed = {"dataset_kwargs", "remove_unused_columns", "max_length"}
    given = {k: v for k, v in args.to_dict().items() if k in DPOConfig.__dataclass_fields__ and k not in fixed}
    return {k: v for k, v in given.items() if not (isinstance(v, str) and v.startswith("<"))}
