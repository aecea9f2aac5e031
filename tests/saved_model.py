"""A tiny model and prepared rows for tests in several processes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

VOCABULARY = 97


def rows(count: int) -> list[dict]:
    """Prepared preference rows of unequal lengths, the same in every process."""
    source = random.Random(5)

    def ids(low: int, high: int) -> list[int]:
        return [source.randrange(3, VOCABULARY) for _ in range(source.randint(low, high))]

    return [{"prompt_ids": ids(3, 12), "chosen_ids": ids(1, 9), "rejected_ids": ids(1, 9)} for _ in range(count)]


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0", eos_token="w1", bos_token="w2")


def save_model(folder: Path, **changes: Any) -> Path:
    """Save a two-layer Llama with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    set_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        **changes,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
