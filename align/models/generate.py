"""Greedy generation in batches of equal make-up wherever they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.engine.scoring import causal_model
from align.models.ends import end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def by_length(lengths: Sequence[int]) -> list[int]:
    """Rows by length of their prompts, so that in batches of neighbours little is padded; ties keep their order."""
    return sorted(range(len(lengths)), key=lambda i: (lengths[i], i))


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
    ends = end_ids(model, tokenizer)
    pad = padding(tokenizer, ends)
    ids, mask = left_padded(prompts, pad, device)
    with greedy(model, ends, pad, max_new_tokens) as settings:
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=in_step)
    return [_text(tokenizer, row, ends, stop) for row in out[:, ids.shape[1] :].tolist()]


def padding(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """A token to pad with; it is masked, so any will do where the tokenizer has none."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*ends, 0)[0]


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device, *, least: int = 1
) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 [R, W] each, with the prompts' ends in one column and at ``least`` so many of these.

    The mask is explicit: where padding and end-of-text are one token, none could be told from the ids.
    """
    width = max(least, *map(len, prompts))
    ids = [[pad] * (width - len(p)) + list(p) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextmanager
def greedy(model: Any, ends: Sequence[int], pad: int, max_new_tokens: int) -> Iterator[Any]:
    """Settings for ``generate`` that take the likeliest token, with a cache.

    Meanwhile the checkpoint's own settings are laid aside: whatever is left open is filled in from them. Router logits
    are switched off, too: transformers' loss of them fails on padded rows with a cache.
    """
    from transformers import GenerationConfig

    inner = causal_model(model)
    own, config = inner.generation_config, inner.config.get_text_config()
    routed = getattr(config, "output_router_logits", False)
    inner.generation_config = GenerationConfig()
    if routed:
        config.output_router_logits = False
    try:
        yield GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=list(ends) or None,
            pad_token_id=pad,
        )
    finally:
        inner.generation_config = own
        if routed:
            config.output_router_logits = True


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: Sequence[int], stop: Sequence[str]) -> str:
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    for mark in stop:
        text = text.split(mark, 1)[0]
    return text.strip()
