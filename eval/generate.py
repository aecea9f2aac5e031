"""Greedy generation in batches of equal make-up wherever they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 32


def plan_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows by length of their prompts, ``size`` at a time, so that little is padded; ties keep their order."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]


def generate_batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    device: torch.device,
    in_step: bool = False,
) -> list[str]:
    """Continuations of ``prompts`` (token ids), cut at the end-of-text token and at ``stop``, stripped.

    ``in_step`` goes on until all processes are done, which a sharded model needs.
    """
    from transformers import GenerationConfig

    ends = end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    # an explicit mask: where padding and end-of-text are one token, none could be told from the ids
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    # every value said: what is left open would be filled in from the checkpoint's own settings
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy, synced_gpus=in_step)
    return [_text(tokenizer, row, ends, stop) for row in out[:, width:].tolist()]


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a text: the tokenizer's, and those that the model itself names."""
    own = getattr(model.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return sorted({int(i) for i in (*listed, tokenizer.eos_token_id) if i is not None})


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: Sequence[int], stop: Sequence[str]) -> str:
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    for mark in stop:
        text = text.split(mark, 1)[0]
    return text.strip()
