"""What packaged recipes name on the Hub: shapes of models and rows of data sets, so that a plan needs no network.

Shapes are those of each model's config.json; a test compares their weights with those that the headers print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LLAMA3_8B: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
_LLAMA_7B: Mapping[str, Any] = {
    **_LLAMA3_8B,
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
_LLAMA32_1B: Mapping[str, Any] = {
    **_LLAMA3_8B,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
_MISTRAL_7B: Mapping[str, Any] = {
    **_LLAMA3_8B,
    "model_type": "mistral",
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
_GEMMA_7B: Mapping[str, Any] = {
    "model_type": "gemma",
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_PYTHIA_1B: Mapping[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_PYTHIA_14B: Mapping[str, Any] = {**_PYTHIA_1B, "num_hidden_layers": 24, "num_attention_heads": 16}
_SMOLLM2_135M: Mapping[str, Any] = {
    **_LLAMA3_8B,
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}

# by model.id; the last one is what online/sft-tldr-pythia-1.4b writes
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3_8B,
    "RLHFlow/LLaMA3-SFT": _LLAMA3_8B,
    "RLHFlow/LLaMA3-SFT-v2": _LLAMA3_8B,
    "open-unlearning/tofu_Llama-3.2-1B-Instruct_full": _LLAMA32_1B,
    "open-unlearning/tofu_Llama-2-7b-chat-hf_full": _LLAMA_7B,
    "muse-bench/MUSE-News_target": _LLAMA_7B,
    "huggyllama/llama-7b": {**_LLAMA_7B, "max_position_embeddings": 2048},
    "alignment-handbook/zephyr-7b-sft-full": _MISTRAL_7B,
    "HuggingFaceH4/mistral-7b-sft-beta": _MISTRAL_7B,
    "HuggingFaceH4/zephyr-7b-gemma-sft-v0.1": _GEMMA_7B,
    "trl-lib/pythia-1b-deduped-tldr-sft": _PYTHIA_1B,
    "EleutherAI/pythia-1.4b": _PYTHIA_14B,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "runs/sft-tldr-pythia-1.4b/model": _PYTHIA_14B,
}

# rows that an epoch goes through, by data set, subset and split, as the data sets' cards count them
ROWS: Mapping[str, int] = {
    "HuggingFaceH4/ultrafeedback_binarized/train_prefs": 61_135,
    "princeton-nlp/llama3-ultrafeedback-armorm/train": 59_876,
    "argilla/dpo-mix-7k/train": 6_750,
    "trl-lib/tldr-preference/train": 92_858,
    "trl-lib/tldr/train": 116_722,
    "Anthropic/hh-rlhf/train": 160_800,
    "trl-lib/hh-rlhf-helpful-base/train": 43_835,
    "lvwerra/stack-exchange-paired/train[:100000]": 100_000,
    "locuslab/TOFU/forget10/train": 400,
    **{f"RLHFlow/iterative-prompt-v1-iter{i}-20K/train": 20_000 for i in (1, 2, 3)},
    **{f"RLHFlow/ultrafeedback_iter{i}/train": 20_000 for i in (1, 2, 3)},
}
