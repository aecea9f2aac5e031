"""Tiny models and adapters in folders, as others would leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from tiny import tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from zoo import tiny_classifier, tiny_model

# where the attention of an architecture has its linear layers
TARGETS = {
    "gpt2": ["c_attn", "c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "down_proj"],
}
ROWS = [[5, 260, 31, 8, 90, 7], [44, 3], [9, 120, 250, 33, 17, 90, 11, 12]]


def base(folder: Path, name: str = "llama", *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save a tiny model with a tokenizer that has a chat template."""
    tokenizer = tiny_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tiny_model(name, dtype=dtype, vocab_size=len(tokenizer), **ids, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter(folder: Path, under: Path, name: str = "llama", *, reward: bool = False, **changes: Any) -> Path:
    """Save an adapter on the model ``under``, all of whose weights are away from where they start."""
    kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    options = {"num_labels": 1} if reward else {}
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS.get(name, ["q_proj", "v_proj", "down_proj"]),
        "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
        **changes,
    }
    torch.manual_seed(7)
    model = peft.get_peft_model(kind.from_pretrained(under, **options), peft.LoraConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def whole_classifier(folder: Path, name: str = "llama") -> Path:
    """Save a tiny reward model with its tokenizer."""
    tokenizer = tiny_tokenizer()
    tiny_classifier(name, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """The logits of ``ROWS``, computed row by row and put behind each other."""
    model.eval()
    found = [model(input_ids=torch.tensor([row])).logits.float() for row in ROWS]
    return torch.cat([one.flatten() for one in found])


def as_adapter(folder: Path, under: Path, *, reward: bool = False) -> Tensor:
    """Logits by peft alone: the adapter on its model in float32."""
    kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    options: dict[str, Any] = {"num_labels": 1} if reward else {}
    return logits(peft.PeftModel.from_pretrained(kind.from_pretrained(under, dtype="float32", **options), folder))


def as_model(folder: Path, *, reward: bool = False) -> Tensor:
    """Logits by transformers alone, in float32."""
    kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    return logits(kind.from_pretrained(folder, dtype="float32"))


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference as a share of the largest logit."""
    return float((a - b).abs().max() / b.abs().max())
