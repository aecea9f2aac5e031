"""How the gradients of two answers' log-probs lie to each other, over the head's weight and without a backward pass.

The gradient of an answer's log-prob with respect to the weight is ``sum_t e_t h_t^T``: e_t is the gradient with respect
to the logits at token t, h_t the hidden state that they come from. So the product of two such gradients is
``sum_{t,u} (e_t . e_u) (h_t . h_u)``: two small tables of products, and the gradients themselves are never made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align.engine.fused import Finish, Tile, differentiate, fused_works
from align.engine.tiles import add_product, no_autocast, product, slices, tile_area, tile_shape, wide


def gradient_products(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logprobs: Tensor,
    finish: Finish,
    pairs: Sequence[tuple[slice, slice]],
    dtype: torch.dtype,
) -> Tensor:
    """``|g_a|^2``, ``|g_b|^2`` and ``<g_a, g_b>`` of every pair of answers, [B, 3].

    Args:
        hidden: hidden states [N, H] of all tokens.
        targets: [N], and their ``logprobs`` [N] in nats.
        pairs: the tokens of both answers.
        dtype: of the factors; sums are float32 (float64 stays).
    """
    out = hidden.new_zeros(len(pairs), 3, dtype=wide(dtype))
    with torch.no_grad(), no_autocast(hidden):
        states = hidden.detach().to(dtype)
        for i, (a, b) in enumerate(pairs):
            tokens = torch.cat([torch.arange(s.start, s.stop, device=hidden.device) for s in (a, b)])
            table = _products(states[tokens], weight, bias, targets[tokens], logprobs[tokens], finish)
            cut = a.stop - a.start
            out[i] = torch.stack([table[:cut, :cut].sum(), table[cut:, cut:].sum(), table[:cut, cut:].sum()])
    return out


def _products(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logprobs: Tensor, finish: Finish
) -> Tensor:
    """(e_t . e_u) (h_t . h_u) for all tokens of a pair, [n, n]; logits come in tiles of the vocabulary."""
    count, dtype, sums = len(states), states.dtype, wide(states.dtype)
    own = weight[targets].to(dtype)
    chosen = (states.to(sums) * own.to(sums)).sum(1) + (0 if bias is None else bias[targets].to(sums))
    normaliser = finish(chosen) - logprobs.to(sums)
    table = torch.empty(count, count, dtype=sums, device=states.device)
    ones = torch.ones(count, dtype=sums, device=states.device)
    fused = fused_works(states.device, dtype) is None
    _, step = tile_shape(count, len(weight), tile_area(states.device))
    for words in slices(len(weight), step):
        logits = product(states, weight[words].to(dtype).t())
        logits = logits if bias is None else logits + bias[words].to(sums)
        errors = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
        differentiate(Tile(logits, words.start, targets, finish), normaliser, ones, errors, fused=fused)
        add_product(table, errors, errors.t(), fresh=words.start == 0)
    return table * product(states, states.t())
