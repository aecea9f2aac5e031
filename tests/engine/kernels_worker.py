"""Run by test_head_kernels.py with TRITON_INTERPRET=1, which Triton reads when it is imported: kernels on CPU tensors.

Prints one JSON object: largest differences between kernels and torch's operations, and of the whole head from float64.
"""

from __future__ import annotations

import json
from unittest.mock import patch

import torch
from torch import Tensor, nn

from align.engine import logprob, triton_kernels
from align.engine.fused import Finish, Tile, absorb, differences, differentiate, new_state, results
from align.engine.head import HeadJob, read_head
from align.engine.reads import LogProb

CPU = torch.device("cpu")


def head_and_gradients(dtype: torch.dtype, finish: Finish) -> list[Tensor]:
    """Log-probs and gradients of hidden, weight and bias, of 11 tokens and 37 words in tiles of 4 x 10."""
    torch.manual_seed(0)
    head = nn.Linear(6, 37).to(dtype)
    hidden = torch.randn(11, 6).to(dtype).requires_grad_()
    values = read_head(head, hidden, HeadJob(torch.randint(37, (11,)), (LogProb(),), finish))
    inputs = (hidden, head.weight, head.bias)
    weighted = torch.autograd.grad((values * torch.linspace(-1, 1, 11)).sum(), inputs, retain_graph=True)
    summed = torch.autograd.grad(values.sum(), inputs)  # whose upstream gradient is one number, expanded
    return [x.detach().double() for x in (values, *weighted, *summed)]


def whole_head(finish: Finish) -> float:
    """Largest difference from float64 with the kernels, which were seen to run, relative to the largest entry."""
    with patch.object(logprob, "tile_shape", lambda *_: (4, 10)):
        exact = head_and_gradients(torch.float64, finish)
        with (
            patch.object(logprob, "fused_works", lambda *_: None),
            patch.object(triton_kernels, "absorb", wraps=triton_kernels.absorb) as forward,
            patch.object(triton_kernels, "differentiate", wraps=triton_kernels.differentiate) as backward,
        ):
            found = head_and_gradients(torch.float32, finish)
    tiles = 3 * 4  # of tokens and words
    assert (forward.call_count, backward.call_count) == (tiles, 2 * tiles)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True))


def extreme() -> list[float]:
    """Log-probs of the last word and its gradient, a word to a tile: logits far from 0, and words ruled out by -inf."""
    found = []
    for row in ([1e4, 1e4], [-1e4, 0.0], [float("-inf"), float("-inf"), 3.0]):
        target = torch.tensor([len(row) - 1])
        state = new_state(1, torch.float32, CPU)
        for first in range(len(row)):
            absorb(Tile(torch.tensor([row[first : first + 1]]), first, target, Finish()), state, fused=True)
        logprobs, normaliser = results(state)
        out = torch.empty(1, len(row))
        differentiate(Tile(torch.tensor([row]), 0, target, Finish()), normaliser, torch.ones(1), out, fused=True)
        found += [logprobs.item(), out[0, -1].item()]
    return found


print(
    json.dumps(
        {
            "differences": {str(dtype): differences(CPU, dtype) for dtype in (torch.float32, torch.bfloat16)},
            "head": [whole_head(finish) for finish in (Finish(), Finish(scale=0.7, cap=2.0))],
            "extreme": extreme(),
        }
    )
)
