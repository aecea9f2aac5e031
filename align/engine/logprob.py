"""Log-probs of the targets, and their gradients, in tiles over the vocabulary.

A tile of words has all tokens in it, so its rows of the weight's gradient are one product, written once. Tiles over
tokens would add every tile's product to the gradient of the whole weight.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from align.engine.fused import Finish, Tile, absorb, differentiate, fused_works, new_state, results
from align.engine.tiles import add_product, no_autocast, product, slices, tile_area, tile_shape, wide


class LogProbs(torch.autograd.Function):
    """Forward keeps the hidden states and one number for each token; backward makes each tile's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: nn.Linear,
        targets: Tensor,
        finish: Finish,
        dtype: torch.dtype,
    ) -> Tensor:
        """Log-probs [N] in nats, float32 (float64 stays), of ``targets`` [N] after ``hidden`` [N, H]."""
        ctx.head, ctx.finish, ctx.dtype = head, finish, dtype
        state = new_state(len(hidden), wide(dtype), hidden.device)
        with no_autocast(hidden):
            tiles = _Tiles(hidden, weight, bias, targets, finish, dtype)
            for words in tiles.words:
                factor = weight[words].to(dtype)
                for tokens in tiles.tokens:
                    absorb(tiles.tile(tokens, words, factor), state[:, tokens], fused=tiles.fused)
        logprobs, normaliser = results(state)
        ctx.save_for_backward(hidden, targets, normaliser)
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, normaliser = ctx.saved_tensors
        # the parameter is looked up again: a sharded one is gathered around this backward, in a place of its own
        weight, bias, sums = ctx.head.weight, ctx.head.bias, normaliser.dtype
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden, dtype=sums) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=sums) if need_bias else None
        upstream = upstream.contiguous()  # the gradient of a sum is one number, expanded
        with no_autocast(hidden):
            tiles = _Tiles(hidden, weight, bias, targets, ctx.finish, ctx.dtype)
            for words in tiles.words:
                factor = weight[words].to(ctx.dtype)
                if grad_weight is not None:
                    part = grad_weight[words]
                    total = part if part.dtype == sums else torch.empty_like(part, dtype=sums)
                for tokens in tiles.tokens:
                    tile = tiles.tile(tokens, words, factor)
                    gradient = tiles.gradient(tile)
                    differentiate(tile, normaliser[tokens], upstream[tokens], gradient, fused=tiles.fused)
                    if grad_hidden is not None:
                        add_product(grad_hidden[tokens], gradient, factor, fresh=words.start == 0)
                    if grad_weight is not None:
                        add_product(total, gradient.t(), tiles.hidden[tokens], fresh=tokens.start == 0)
                    if grad_bias is not None:
                        grad_bias[words] += gradient.sum(0, dtype=sums)
                if grad_weight is not None and total is not part:
                    part.copy_(total)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            grad_weight,
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 4,
        )


class _Tiles:
    """The tiles of one pass over tokens [N] and the vocabulary, which take turns in the same memory."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, finish: Finish, dtype: torch.dtype
    ) -> None:
        shape = tile_shape(len(hidden), len(weight), tile_area(hidden.device))
        self.tokens, self.words = slices(len(hidden), shape[0]), slices(len(weight), shape[1])
        self.hidden, self.bias, self.targets, self.finish = hidden.to(dtype), bias, targets.contiguous(), finish
        self.fused = fused_works(hidden.device, dtype) is None
        self._logits = torch.empty(shape[0] * shape[1], dtype=wide(dtype), device=hidden.device)

    @functools.cached_property
    def _gradients(self) -> Tensor:
        """Room for a tile's gradient in the factors' type. One that is as wide as the logits takes their place."""
        dtype = self.hidden.dtype
        return self._logits if self._logits.dtype == dtype else torch.empty_like(self._logits, dtype=dtype)

    def tile(self, tokens: slice, words: slice, factor: Tensor) -> Tile:
        """The tile of some tokens and words; ``factor`` [v, H] has the words' rows of the weight."""
        hidden = self.hidden[tokens]
        room = self._logits[: len(hidden) * len(factor)].view(len(hidden), len(factor))
        logits = product(hidden, factor.t(), out=room)
        if self.bias is not None:
            logits += self.bias[words]
        return Tile(logits, words.start, self.targets[tokens], self.finish)

    def gradient(self, tile: Tile) -> Tensor:
        """Where the gradient of a tile belongs."""
        return self._gradients[: tile.logits.numel()].view(tile.logits.shape)
