"""Log-probs in tiles of the vocabulary: values and gradients against float64, whatever the tiles; no whole logits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from align.engine import logprob
from align.engine.fused import Finish, fused_works
from align.engine.head import HeadJob, finish_of, read_head
from align.engine.reads import ArgmaxHit, LogProb
from align.engine.tiles import area_of, tile_shape

FINISHES = [Finish(), Finish(scale=0.7), Finish(cap=2.0), Finish(scale=0.7, cap=2.0)]
WORDS, TOKENS = 23, 11


def head_of(bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head of 23 words on 11 states of width 5; targets are the first and the last word, and others."""
    torch.manual_seed(0)
    head = nn.Linear(5, WORDS, bias=bias).to(dtype)
    targets = torch.cat([torch.tensor([0, WORDS - 1]), torch.randint(WORDS, (TOKENS - 2,))])
    return head, torch.randn(TOKENS, 5).to(dtype).requires_grad_(), targets


def read(head: nn.Linear, hidden: Tensor, targets: Tensor, finish: Finish = FINISHES[0]) -> Tensor:
    return read_head(head, hidden, HeadJob(targets, (LogProb(),), finish))[0]


def textbook(head: nn.Linear, hidden: Tensor, targets: Tensor, finish: Finish = FINISHES[0]) -> Tensor:
    logits = finish.scale * head(hidden)
    if finish.cap is not None:
        logits = finish.cap * (logits / finish.cap).tanh()
    return logits.softmax(-1)[torch.arange(len(targets)), targets].log()


def with_gradients(values: Tensor, head: nn.Linear, hidden: Tensor) -> list[Tensor]:
    """Values, and gradients of their weighted sum for hidden states, weight and bias."""
    weights = torch.linspace(-1, 2, len(values), dtype=values.dtype)
    return [values.detach(), *torch.autograd.grad((values * weights).sum(), [hidden, *head.parameters()])]


def use_tiles(monkeypatch: pytest.MonkeyPatch, tokens: int, words: int) -> None:
    monkeypatch.setattr(logprob, "tile_shape", lambda *_: (tokens, words))


def test_a_worked_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits log 1, log 2, log 5 have the probabilities 1/8, 1/4, 5/8; a tile for each word."""
    use_tiles(monkeypatch, 1, 1)
    head = nn.Linear(1, 3, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [2.0], [5.0]], dtype=torch.float64).log())
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    value = read(head, hidden, torch.tensor([1]))
    assert value.item() == pytest.approx(math.log(1 / 4), abs=1e-15)
    value.backward()
    assert head.weight.grad[:, 0].tolist() == pytest.approx([-1 / 8, 3 / 4, -5 / 8], abs=1e-15)
    assert hidden.grad.item() == pytest.approx(3 / 4 * math.log(2) - 5 / 8 * math.log(5), abs=1e-15)


# all in one; the last tile of one word; of one token; blocks of tokens; a tile for each word and token
TILES = [(TOKENS, WORDS), (TOKENS, 11), (TOKENS, 8), (5, WORDS), (4, 7), (1, 1)]


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("finish", FINISHES, ids=["plain", "scale", "cap", "both"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_values_and_gradients_equal_the_textbook_in_float64(
    tiles: tuple[int, int], finish: Finish, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiles(monkeypatch, *tiles)
    head, hidden, targets = head_of(bias)
    expected = with_gradients(textbook(head, hidden, targets, finish), head, hidden)
    found = with_gradients(read(head, hidden, targets, finish), head, hidden)
    assert len(found) == (4 if bias else 3)
    for ours, own in zip(found, expected, strict=True):
        assert own.abs().max() > 0.01
        assert (ours - own).abs().max() <= 1e-12


@pytest.mark.parametrize("finish", FINISHES, ids=["plain", "scale", "cap", "both"])
def test_float32_is_as_exact_as_whole_logits(finish: Finish) -> None:
    """3,000 words in tiles of 512: the errors of torch's own log_softmax in float32, or three of them."""
    torch.manual_seed(1)
    wide = nn.Linear(32, 3000).double()
    hidden, targets = torch.randn(40, 32, dtype=torch.float64, requires_grad=True), torch.randint(3000, (40,))
    exact = with_gradients(textbook(wide, hidden, targets, finish), wide, hidden)
    narrow = nn.Linear(32, 3000)
    narrow.load_state_dict(wide.state_dict())
    state = hidden.detach().float().requires_grad_()
    own = with_gradients(finish(narrow(state)).log_softmax(-1).gather(1, targets[:, None])[:, 0], narrow, state)
    with pytest.MonkeyPatch.context() as patch:
        use_tiles(patch, 40, 512)
        ours = with_gradients(read(narrow, state, targets, finish), narrow, state)
    for a, b, c in zip(ours, own, exact, strict=True):
        assert a.dtype == torch.float32
        scale = c.abs().max()
        assert (a - c).abs().max() / scale <= max(3 * ((b - c).abs().max() / scale).item(), 5e-7)


def test_large_logits_do_not_swallow_the_sum() -> None:
    """Two equal logits of 10,000, where float32 steps by 0.001: the log-prob is -log 2 all the same."""
    head = nn.Linear(1, 2, bias=False)
    nn.init.constant_(head.weight, 1e4)
    assert read(head, torch.ones(1, 1), torch.tensor([0])).item() == pytest.approx(-math.log(2), abs=1e-7)


def test_words_that_a_bias_rules_out_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding of a vocabulary by a bias of -inf, in a tile of its own, the first."""
    use_tiles(monkeypatch, TOKENS, 4)
    head, hidden, targets = head_of()
    with torch.no_grad():
        head.bias[:4] = -math.inf
    targets = targets.clamp(min=4)
    values, *gradients = with_gradients(read(head, hidden, targets), head, hidden)
    smaller = nn.Linear(5, WORDS - 4).double()
    smaller.load_state_dict({"weight": head.weight[4:], "bias": head.bias[4:]})
    expected, *_ = with_gradients(textbook(smaller, hidden, targets - 4), smaller, hidden)
    assert (values - expected).abs().max() <= 1e-12
    assert all(torch.isfinite(g).all() for g in gradients)
    assert gradients[1][:4].abs().max() == 0


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)), ids=str)
def test_only_what_asks_for_a_gradient_gets_one(
    needs: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiles(monkeypatch, 4, 7)
    head, hidden, targets = head_of()
    expected = with_gradients(textbook(head, hidden, targets), head, hidden)[1:]
    inputs = (hidden, head.weight, head.bias)
    for each, need in zip(inputs, needs, strict=True):
        each.requires_grad_(need)
    values = read(head, hidden, targets)
    assert values.requires_grad == any(needs)
    if any(needs):
        values.backward(torch.linspace(-1, 2, TOKENS, dtype=torch.float64))
    for each, need, own in zip(inputs, needs, expected, strict=True):
        assert (each.grad is not None) == need
        assert not need or (each.grad - own).abs().max() <= 1e-12


def test_no_tokens_have_gradients_of_zero() -> None:
    head, _, _ = head_of(dtype=torch.float32)
    hidden = torch.empty(0, 5, requires_grad=True)
    values = read(head, hidden, torch.empty(0, dtype=torch.long))
    assert values.shape == (0,)
    values.sum().backward()
    assert hidden.grad.shape == (0, 5)
    assert head.weight.grad.abs().max() == head.bias.grad.abs().max() == 0
    # and so have reads of whole rows
    head.zero_grad()
    both = read_head(head, hidden, HeadJob(torch.empty(0, dtype=torch.long), (LogProb(), ArgmaxHit()), Finish()))
    both.sum().backward()
    assert head.weight.grad.abs().max() == 0


def test_weights_of_16_bits_take_their_gradient_from_a_sum_of_32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four tokens, each of whose products would be rounded by up to 1 in 256."""
    use_tiles(monkeypatch, 4, 7)
    head, hidden, targets = head_of(dtype=torch.bfloat16)
    values = read(head, hidden, targets)
    assert values.dtype == torch.float32
    values.sum().backward()
    wide, states = head_of()[0], hidden.detach().double().requires_grad_()
    wide.load_state_dict(head.state_dict())
    exact = textbook(wide, states, targets)
    exact.sum().backward()
    assert (values - exact).abs().max() <= 1e-6
    for ours, own in ((hidden, states), (head.weight, wide.weight), (head.bias, wide.bias)):
        assert ours.grad.dtype == torch.bfloat16
        assert ((ours.grad.double() - own.grad).abs() <= own.grad.abs() * 2**-8 + 1e-6).all()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, in elements, and operations that wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique"):
            self.waits.append(name)
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return out


def largest(tokens: int, words: int, *, capped: bool = False) -> Largest:
    head = nn.Linear(4, words, bias=False)
    hidden, targets = torch.randn(tokens, 4, requires_grad=True), torch.randint(words, (tokens,))
    with Largest() as seen:
        read(head, hidden, targets, Finish(cap=2.0 if capped else None)).sum().backward()
    return seen


@pytest.mark.parametrize("capped", [False, True], ids=["plain", "capped"])
def test_logits_never_exist_as_a_whole_and_nothing_waits_for_the_device(
    capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "tile_area", lambda device: 64 * 512)
    seen = largest(64, 5000, capped=capped)
    assert seen.elements == 64 * 512  # a tile, of 320,000 logits; the weight has 20,000 entries
    assert seen.waits == []


def test_a_tile_is_one_block_of_tokens_until_there_are_many() -> None:
    h100 = area_of(132, 80 * 2**30)
    assert h100 == 132 * 2**20  # half a gibibyte of float32
    assert tile_shape(8192, 131_072, h100) == (8192, 16_384)
    assert tile_shape(8192, 151_936, h100) == (8192, 16_896)
    assert tile_shape(2048, 128_256, h100) == (2048, 64_256)
    assert tile_shape(23_000, 131_072, h100)[0] == 23_000
    tokens, words = tile_shape(65_536, 131_072, h100)
    assert (tokens, words) == (21_846, 6400)  # three blocks
    assert tokens * words <= 1.02 * h100  # words come in multiples of 256
    # a card of 24 GB holds less: 64 of such tiles fill it
    assert area_of(128, 24 * 2**30) == 24 * 2**30 // 64 // 4


def test_a_tile_is_never_larger_than_what_it_is_for() -> None:
    assert tile_shape(3, 7, 2**21) == (3, 7)
    assert tile_shape(0, 7, 2**21) == (1, 7)
    assert tile_shape(100, 300, 1) == (2, 1)


def test_finish_of_reads_what_models_call_their_scale_and_cap() -> None:
    class Config:
        def __init__(self, **values: float) -> None:
            self.__dict__ |= values

    assert finish_of(Config()) == Finish(1.0, None)
    assert finish_of(Config(logit_scale=0.25)) == Finish(0.25, None)
    assert finish_of(Config(logits_scaling=8.0, final_logit_softcapping=30.0)) == Finish(0.125, 30.0)
    assert Finish(0.5, 3.0)(torch.tensor([2.0])).item() == pytest.approx(3 * math.tanh(1 / 3))


def test_a_machine_without_a_gpu_says_why_no_kernel_runs() -> None:
    assert fused_works(torch.device("cpu"), torch.float32) == "there are no fused kernels for cpu"
