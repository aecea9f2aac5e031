"""What the head takes: the tiles by hand, and beside what torch is seen to hold while the engine computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align.engine.fused import Finish
from align.engine.head import HeadJob, read_head
from align.engine.reads import Entropy, LogProb, Read
from align.engine.tiles import tile_area
from align.plan.head import Head, logprobs, taken
from align.plan.trace import Live

CPU = tile_area(torch.device("cpu"))


def head(**changes: object) -> Head:
    return Head(**{"vocabulary": 32_000, "width": 64, "weight": 4, "trained": True, "hidden": 4, "factor": 4,
                   "area": CPU} | changes)  # type: ignore[arg-type]  # fmt: skip


def test_tiles_by_hand() -> None:
    # 1,000 tokens in one block, since that is below twice the side of a square of 2^18; 262 words fit beside them, so
    # 123 tiles, of 261 words, rounded up to 512
    found = logprobs(head(), 1000)
    tile = 4 * 1000 * 512
    assert found.keeps == 4 * 1000 * 64 + 16 * 1000
    assert found.forward == found.keeps + tile + 12 * 1000
    assert found.backward == tile + 4 * 1000 * 64 + 4 * 32_000 * 64


def test_sixteen_bits_on_a_gpu_by_hand() -> None:
    # float32 weights and hidden states under autocast: factors are copies in 2 bytes, and gradients another tile
    found = logprobs(head(factor=2, area=2**20), 1000)
    rows, columns = 1000, 1280  # 1,048 words fit, so 31 tiles of 1,033 words, rounded up to 1,280
    tile = 4 * rows * columns + 2 * columns * 64 + 2 * 1000 * 64
    assert found.forward == found.keeps + tile + 12 * 1000
    assert found.backward == tile + 4 * 1000 * 64 + 2 * rows * columns + 4 * 32_000 * 64


def test_an_adapter_leaves_the_head_without_gradient() -> None:
    assert logprobs(head(), 500).backward - logprobs(head(trained=False), 500).backward == 4 * 32_000 * 64


@pytest.mark.parametrize("reads", [(LogProb(),), (LogProb(), Entropy())], ids=str)
@pytest.mark.parametrize("trained", [True, False])
def test_it_is_what_torch_is_seen_to_hold(reads: tuple[Read, ...], trained: bool) -> None:
    tokens, vocabulary, width = 700, 32_000, 64
    linear = nn.Linear(width, vocabulary, bias=False)
    linear.weight.requires_grad_(trained)
    hidden = torch.randn(tokens, width, requires_grad=True)
    job = HeadJob(torch.arange(tokens), reads, Finish())
    with Live() as live:
        values = read_head(linear, hidden, job)
        forward, before = live.peak, live.mark()
        values.sum().backward()
        backward = live.peak - before
    planned = taken(head(trained=trained), tokens, reads, "cpu")
    states = 4 * tokens * width  # given from outside here
    assert forward == pytest.approx(planned.forward - states, rel=0.05, abs=0)
    assert backward == pytest.approx(planned.backward, rel=0.05, abs=0)


def test_without_reads_it_takes_nothing() -> None:
    assert taken(head(), 700, (), "cpu") == (0, 0, 0)
