"""Scores by a reward model's own forward, for heads of which the engine knows nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.layout import TreeBatch


def own_scores(model: nn.Module, batch: TreeBatch) -> Tensor:
    """Score of every sequence of a batch, each with its prompt in a row of its own, [S]."""
    rows = [[*tree.prompt, *branch.ids] for tree, branch in batch.branches()]
    return row_scores(model, rows, batch.input_ids.device)


def row_scores(model: nn.Module, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Score of every row of token ids, [n], in one forward of rows that are padded on the right.

    Decoders find the end of a row by comparing with the pad token of their configuration. So rows are padded with a
    token that ends none of them, and the configuration names it for as long as the forward runs: an answer that ends
    in the pad token, as where EOS pads, is read at its end all the same.
    """
    inner: Any = model
    while hasattr(inner, "module"):
        inner = inner.module
    config = inner.config.get_text_config()
    last = {row[-1] for row in rows}
    pad = config.pad_token_id
    if pad is None or pad in last:
        pad = next(token for token in range(len(rows) + 1) if token not in last)
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    with _padded_with(config, pad):
        logits = model(input_ids=ids, attention_mask=mask).logits
    return logits[:, 0].to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def _padded_with(config: Any, token: int) -> Iterator[None]:
    before = config.pad_token_id
    config.pad_token_id = token
    try:
        yield
    finally:
        config.pad_token_id = before
