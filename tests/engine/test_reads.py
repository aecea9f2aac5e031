"""Reads of the next-token distribution: values against direct formulas, gradients against autograd and differences."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from zoo import gradients, kept, own_logits, tiny_model, tree_batch

from align.engine import head as head_module
from align.engine.fused import Finish
from align.engine.head import HeadJob, ReferenceHead, finish_of, read_head
from align.engine.layout import TreeBatch
from align.engine.reads import (
    ArgmaxHit,
    CollisionProbability,
    Entropy,
    KLToReference,
    LogProb,
    Read,
    evaluate,
)
from align.engine.scoring import ScoringEngine, attach

READS: tuple[Read, ...] = (
    LogProb(),
    Entropy(),
    CollisionProbability(),
    ArgmaxHit(),
    KLToReference("forward"),
    KLToReference("reverse"),
)
DIFFERENTIABLE = [read for read in READS if read.differentiable]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 tokens a tile, so that every test goes through several."""
    monkeypatch.setattr(head_module, "_AREA", {"cpu": 1})


def direct(read: Read, logits: Tensor, target: Tensor, reference: Tensor) -> Tensor:
    """The textbook formula of a read, over probabilities."""
    p, q = logits.softmax(-1), reference.softmax(-1)
    if isinstance(read, LogProb):
        return p[torch.arange(len(target)), target].log()
    if isinstance(read, Entropy):
        return -(p * p.log()).sum(-1)
    if isinstance(read, CollisionProbability):
        return (p * p).sum(-1)
    if isinstance(read, ArgmaxHit):
        return (p.argmax(-1) == target).double()
    assert isinstance(read, KLToReference)
    return (q * (q / p).log()).sum(-1) if read.direction == "forward" else (p * (p / q).log()).sum(-1)


def whole_logits(model: nn.Module, batch: TreeBatch) -> Tensor:
    """The model's own logits [N, V] at every target."""
    return torch.cat([own_logits(model, tree, branch)[kept(branch)] for tree, branch in batch.branches()])


# layer norms of these compute in float64 where the model does
@pytest.mark.parametrize("name", ["gpt2", "phi-head-bias", "cohere2"])
@pytest.mark.parametrize("mode", ["tree", "padded"])
def test_reads_equal_direct_formulas_and_so_do_their_gradients(name: str, mode: str) -> None:
    model = tiny_model(name, dtype=torch.float64)
    reference = tiny_model(name, seed=1, dtype=torch.float64)
    batch = tree_batch()
    policy_logits = whole_logits(model, batch)
    reference_logits = whole_logits(reference, batch).detach()
    own = {}
    for read in READS:
        values = direct(read, policy_logits, batch.targets, reference_logits)
        own[read.name] = (values.detach(), None)
        if read.differentiable:
            found = torch.autograd.grad(values, policy_logits, torch.ones_like(values), retain_graph=True)
            assert found[0].abs().max() > 0
            own[read.name] = (values.detach(), gradients_of(model, values))
    for each in (model, reference):
        attach(each)
    engine = ScoringEngine()
    engine.mode = mode
    with torch.no_grad():
        head = engine(reference, batch, keep=True).head
    assert head is not None
    scores = engine(model, batch, READS, reference=head)
    tolerance = 1e-12 if name != "cohere2" else 1e-6  # its norm goes through float32
    for read in READS:
        values, expected = own[read.name]
        assert torch.allclose(scores.tokens[read.name], values, rtol=tolerance, atol=tolerance)
        if expected is not None:
            ours = gradients_of(model, scores.tokens[read.name])
            whole = max(g.abs().max() for g in expected.values())
            for parameter, gradient in expected.items():
                assert (ours[parameter] - gradient).abs().max() <= 100 * tolerance * whole
    assert 0 < scores.tokens["argmax_hit"].sum() < len(batch.targets) or name != "gpt2"


def gradients_of(model: nn.Module, values: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    values.pow(2).sum().backward(retain_graph=True)
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


class Case:
    """A head of 7 words on 40 states of width 5, in float64, with a reference beside it."""

    def __init__(self, bias: bool, finish: bool) -> None:
        torch.manual_seed(0)
        self.head = nn.Linear(5, 7, bias=bias).double()
        self.hidden = torch.randn(40, 5, dtype=torch.float64, requires_grad=True)
        self.targets = torch.randint(7, (40,))
        self.finish = Finish(scale=0.7, cap=2.0) if finish else Finish()
        other = nn.Linear(5, 7, bias=bias).double().requires_grad_(False)
        self.reference = ReferenceHead(torch.randn(40, 5).double(), other.weight, other.bias, self.finish)

    def job(self, reads: tuple[Read, ...]) -> HeadJob:
        return HeadJob(self.targets, reads, self.finish, self.reference)


@pytest.mark.parametrize("finish", [False, True], ids=["plain", "capped"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("read", [*DIFFERENTIABLE, None], ids=lambda r: r.name if r else "all")
def test_gradients_of_the_chunked_head_by_finite_differences(read: Read | None, bias: bool, finish: bool) -> None:
    case = Case(bias, finish)
    reads = tuple(DIFFERENTIABLE) if read is None else (read,)
    parameters = list(case.head.parameters())

    def scored(hidden: Tensor, *_: Tensor) -> Tensor:
        return read_head(case.head, hidden, case.job(reads))

    assert torch.autograd.gradcheck(scored, (case.hidden, *parameters), fast_mode=True)


def test_a_read_without_a_gradient_beside_one_with_a_gradient() -> None:
    case = Case(bias=True, finish=False)
    values = read_head(case.head, case.hidden, case.job((ArgmaxHit(), LogProb())))
    values.sum().backward()
    alone = torch.autograd.grad(
        read_head(case.head, case.hidden, case.job((LogProb(),))).sum(), [case.hidden, case.head.weight]
    )
    assert torch.allclose(case.hidden.grad, alone[0], rtol=1e-12)
    assert torch.allclose(case.head.weight.grad, alone[1], rtol=1e-12)


def test_a_frozen_head_takes_no_gradient() -> None:
    case = Case(bias=True, finish=False)
    case.head.requires_grad_(False)
    read_head(case.head, case.hidden, case.job((LogProb(),))).sum().backward()
    assert case.hidden.grad is not None
    assert case.head.weight.grad is None


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(bias=True, finish=True)
    tiled = read_head(case.head, case.hidden, case.job(READS))
    monkeypatch.setattr(head_module, "_AREA", {"cpu": 2**24})
    assert torch.allclose(read_head(case.head, case.hidden, case.job(READS)), tiled, rtol=1e-13)


def test_values_at_extreme_logits_are_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], requires_grad=True)
    values = evaluate(READS, logits, torch.tensor([2, 0]), torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))
    assert torch.isfinite(values).all()
    values[[i for i, r in enumerate(READS) if r.differentiable]].sum().backward()
    assert torch.isfinite(logits.grad).all()
    third = 1 / 3
    by_hand = torch.tensor([-1.0986123, 1.0986123, third, 1.0, 0.0, 0.0])
    assert torch.allclose(values[:, 1], by_hand, atol=1e-6)
    assert values[0, 0].item() == -2e4


def test_of_tokens_that_are_equally_likely_the_first_is_hit() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [0.0, 2.0, 2.0]])
    assert ArgmaxHit().chunk(logits, torch.tensor([1, 2]), None).tolist() == [1.0, 0.0]


def test_logits_are_scaled_before_they_are_capped() -> None:
    finish = finish_of(SimpleNamespace(logit_scale=2.0, final_logit_softcapping=3.0))
    assert finish(torch.tensor([4.0])).item() == pytest.approx(3 * math.tanh(8 / 3))


def test_kept_weights_are_copies_only_where_asked() -> None:
    case = Case(bias=True, finish=False)
    for copied in (False, True):
        job = HeadJob(case.targets, (LogProb(),), Finish(), keep=True, copy_weight=copied)
        read_head(case.head, case.hidden, job)
        assert job.kept is not None
        assert (job.kept.weight.data_ptr() == case.head.weight.data_ptr()) is not copied
        assert not job.kept.hidden.requires_grad


def test_kl_to_itself_is_zero() -> None:
    model, batch = tiny_model(), tree_batch()
    attach(model)
    engine = ScoringEngine()
    head = engine(model, batch, keep=True).head
    scores = engine(model, batch, (KLToReference("forward"), KLToReference("reverse")), reference=head)
    assert scores.tokens["kl_forward"].abs().max() < 1e-6
    assert gradients(model, scores.tokens["kl_reverse"])["lm_head.weight"].abs().max() < 1e-5


def narrow_head() -> tuple[nn.Linear, Tensor, Tensor]:
    """A head of 300 words in bfloat16 whose logits are large, where 16 bits round them by a quarter of a nat."""
    torch.manual_seed(3)
    head = nn.Linear(64, 300, bias=False).bfloat16()
    with torch.no_grad():
        head.weight.mul_(40)
    return head, torch.randn(50, 64).bfloat16(), torch.randint(300, (50,))


def test_logits_of_16_bit_factors_are_not_rounded_to_16_bits() -> None:
    head, hidden, targets = narrow_head()
    logits = hidden.double() @ head.weight.detach().double().t()
    exact = logits.log_softmax(-1)[torch.arange(50), targets]
    rounded = logits.bfloat16().double().log_softmax(-1)[torch.arange(50), targets]
    assert (rounded - exact).abs().mean() > 0.05
    values = read_head(head, hidden, HeadJob(targets, (LogProb(),), Finish()))[0].detach()
    assert values.dtype == torch.float32
    assert (values.double() - exact).abs().max() < 1e-4
    reference = ReferenceHead(hidden, head.weight.detach(), None, Finish())
    kept = HeadJob(targets, (KLToReference("forward"),), Finish(), reference)
    assert read_head(head, hidden, kept).abs().max() < 1e-5


def test_the_weight_gradient_of_16_bit_factors_is_summed_before_it_is_rounded() -> None:
    head, hidden, targets = narrow_head()  # four tiles
    read_head(head, hidden, HeadJob(targets, (LogProb(),), Finish())).sum().backward()
    wide = head.weight.detach().double().requires_grad_()
    (hidden.double() @ wide.t()).log_softmax(-1)[torch.arange(50), targets].sum().backward()
    assert wide.grad is not None
    # to within half a unit of bfloat16's last place, and one part in 10,000 of what was summed
    allowed = wide.grad.abs() * 2**-8 + 1e-4 * wide.grad.abs().max()
    assert ((head.weight.grad.double() - wide.grad).abs() <= allowed).all()
