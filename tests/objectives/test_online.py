"""Objectives on the policy's own samples. Expected gradients are exact: every answer of a small model is enumerated."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
import torch
from objectives.test_objectives import random_pairs, scored
from torch import Tensor
from training import history, trainer

from align.engine.layout import Branch, Example, Tree, pack
from align.engine.reads import KLToReference, LogProb
from align.engine.scores import Scores
from align.objectives import DPO, IPO, KL, NLL, HyPO, Objective, SampledKL, SimPO, SuperHF, Terms, WeightedSum
from align.recipe.objective import parse_objective

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
LEAVE_ONE_OUT = SampledKL("score", "leave_one_out")
TO_GO = SampledKL("reward_to_go", baseline="leave_one_out")
OFFERED = [  # the name in docs/methods.md, samples per prompt
    ("`score`", SampledKL("score"), 1),
    ("`k2`", SampledKL("k2"), 1),
    ("`reward_to_go`", SampledKL("reward_to_go"), 1),
    ("`score`, `leave_one_out`, 2 samples", LEAVE_ONE_OUT, 2),
    ("`score`, `leave_one_out`, 3 samples", LEAVE_ONE_OUT, 3),
    ("`reward_to_go`, `leave_one_out`, 2 samples", TO_GO, 2),
    ("`reward_to_go`, `leave_one_out`, 3 samples", TO_GO, 3),
]


@dataclass(frozen=True)
class World:
    """All answers of an autoregressive model of ``words`` words; word 0 ends an answer where ``stops``."""

    words: int
    length: int
    stops: bool

    @cached_property
    def answers(self) -> list[tuple[int, ...]]:
        grown: list[tuple[int, ...]] = [()]
        for _ in range(self.length):
            ended = [a for a in grown if self.stops and a and a[-1] == 0]
            grown = ended + [(*a, w) for a in grown if a not in ended for w in range(self.words)]
        return sorted(grown)

    @cached_property
    def prefixes(self) -> dict[tuple[int, ...], int]:
        return {p: i for i, p in enumerate(sorted({a[:t] for a in self.answers for t in range(len(a))}))}

    def table(self, phase: float) -> Tensor:
        """Logits after every prefix, one model for each phase."""
        count = len(self.prefixes) * self.words
        return (1.5 * torch.sin(1.7 * torch.arange(count, dtype=torch.float64) + phase)).view(-1, self.words)

    def rows(self, logits: Tensor) -> list[Tensor]:
        """Log-probs of every answer's words."""
        logp = logits.log_softmax(-1)
        return [torch.stack([logp[self.prefixes[a[:t]], w] for t, w in enumerate(a)]) for a in self.answers]


class Toy:
    """A policy and a reference on a world, and the exact gradient of the reverse KL between them."""

    def __init__(self, world: World, policy: Tensor | None = None, reference: Tensor | None = None) -> None:
        self.world = world
        self.theta = (world.table(0.0) if policy is None else policy).clone().requires_grad_()
        self.held = world.table(2.0) if reference is None else reference
        self.rows, self.reference = world.rows(self.theta), world.rows(self.held)
        self.logp = torch.stack([row.sum() for row in self.rows])
        self.p = self.logp.detach().exp()
        self.D = self.logp - torch.stack([row.sum() for row in self.reference])
        self.kl = (self.logp.exp() * self.D).sum()
        self.exact = self.gradient(self.kl)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.theta, retain_graph=True)[0]

    def error(self, gradient: Tensor) -> float:
        return ((gradient - self.exact).norm() / self.exact.norm()).item()

    def groups(self, objective: Objective, k: int) -> tuple[Tensor, Tensor]:
        """The loss of each way to draw k samples, and the probability of drawing them."""
        drawn = list(itertools.product(range(len(self.rows)), repeat=k))
        prompts = [torch.zeros(1, dtype=torch.float64)] * len(drawn)
        policy = Scores.from_rows(sample=[self.rows[i] for group in drawn for i in group], chosen=prompts)
        reference = Scores.from_rows(sample=[self.reference[i] for group in drawn for i in group])
        (term,) = objective(policy, reference).losses
        assert term.unit == "sequences:sample"
        return term.losses.view(-1, k).mean(1), torch.stack([self.p[list(group)].prod() for group in drawn])

    def expected(self, objective: Objective, k: int) -> Tensor:
        losses, p = self.groups(objective, k)
        return self.gradient((p * losses).sum())

    def variance(self, objective: Objective, k: int) -> float:
        """Of the gradient, by sample and over the exact gradient's square."""
        losses, p = self.groups(objective, k)
        each = torch.autograd.grad(
            losses, self.theta, torch.eye(len(losses), dtype=torch.float64), retain_graph=True, is_grads_batched=True
        )[0]
        squares = (each - self.exact).square().sum((1, 2))
        return (k * (p * squares).sum() / self.exact.square().sum()).item()

    def naive(self, of: Callable[[int], Tensor]) -> Tensor:
        """The expected gradient of a loss that is differentiated as it stands, sample by sample."""
        return self.gradient(sum(self.p[i] * of(i) for i in range(len(self.rows))))

    def refused(self) -> dict[str, Tensor]:
        """Expected gradients of what looks like an estimator, by its name in docs/methods.md."""
        own, held = self.theta.log_softmax(-1), self.held.log_softmax(-1)
        position = (own.exp() * (own - held)).sum(-1)
        prefixes, answers = self.world.prefixes, self.world.answers
        return {
            "D itself (k1)": self.naive(lambda i: self.D[i]),
            "exp(-D) - 1 + D (k3)": self.naive(lambda i: (-self.D[i]).exp() - 1 + self.D[i]),
            "D_t^2 / 2, summed over tokens": self.naive(
                lambda i: (self.rows[i] - self.reference[i]).square().sum() / 2
            ),
            "full-vocabulary KL, summed over a sample's positions": self.naive(
                lambda i: position[[prefixes[answers[i][:t]] for t in range(len(answers[i]))]].sum()
            ),
        }


FIXED, STOPS = World(2, 3, stops=False), World(3, 3, stops=True)


@pytest.fixture(scope="module")
def toys() -> tuple[Toy, Toy]:
    return Toy(FIXED), Toy(STOPS)


# ---- sampled_kl


def test_the_worlds_are_complete(toys: tuple[Toy, Toy]) -> None:
    for toy, count, lengths in zip(toys, (8, 15), ({3}, {1, 2, 3}), strict=True):
        assert len(toy.rows) == len(set(toy.world.answers)) == count
        assert {len(row) for row in toy.rows} == lengths
        assert toy.p.sum().item() == pytest.approx(1, abs=1e-14)
        assert toy.kl.item() > 0.3


@pytest.mark.parametrize(("objective", "k"), [pytest.param(o, k, id=name) for name, o, k in OFFERED])
def test_the_expected_gradient_is_that_of_the_reverse_kl(toys: tuple[Toy, Toy], objective: SampledKL, k: int) -> None:
    for toy in toys:
        assert torch.allclose(toy.expected(objective, k), toy.exact, rtol=0, atol=1e-10)


def test_what_looks_like_an_estimator_and_is_none(toys: tuple[Toy, Toy]) -> None:
    for toy in toys:
        found = toy.refused()
        k1, k3, tokens, positions = found.values()
        for name, gradient in found.items():
            assert (gradient - toy.exact).abs().max() > 1e-3, name
            assert toy.error(gradient) > 1e-2, name
        assert k1.abs().max() < 1e-14
        forward = (toy.p / toy.D.detach().exp() * -toy.D).sum()  # KL(reference || policy)
        assert torch.allclose(k3, toy.gradient(forward), atol=1e-12)
        # both leave out what a word does to later ones
        assert torch.allclose(tokens, positions, atol=1e-12)


def test_the_table_in_the_docs_is_what_is_measured(toys: tuple[Toy, Toy]) -> None:
    table = {name: [toy.error(toy.expected(o, k)) for toy in toys] + [toys[0].variance(o, k)] for name, o, k in OFFERED}
    refused = [toy.refused() for toy in toys]
    table |= {name: [toy.error(each[name]) for toy, each in zip(toys, refused, strict=True)] for name in refused[0]}
    for name, (fixed, stops, *variance) in table.items():
        cells = [f"{0 if e < 1e-10 else round(e, 2)}" for e in (fixed, stops)]
        line = f"| {name} | {' | '.join(cells)} | {f'{variance[0]:.1f}' if variance else '-'} |"
        assert line in PAGE, f"docs/methods.md should say: {line}"


def test_leave_one_out_pays_where_the_policy_is_far_away() -> None:
    """Words of the first step: the policy nearly always says 1, the reference nearly never; later they agree."""
    shared = FIXED.table(0.0)
    policy, reference = shared.clone(), shared.clone()
    policy[0], reference[0] = torch.tensor([-2.0, 2.0]), torch.tensor([2.0, -2.0])
    far = Toy(FIXED, policy, reference)
    assert far.kl.item() > 3
    none, paired = far.variance(SampledKL("score"), 1), far.variance(LEAVE_ONE_OUT, 2)
    assert paired < none / 2
    near = Toy(FIXED)
    assert near.variance(LEAVE_ONE_OUT, 2) > near.variance(SampledKL("score"), 1)
    assert f"{none:.0f} to {paired:.0f}" in PAGE


@pytest.mark.parametrize("objective", [o for _, o, _ in OFFERED[:3]] + [LEAVE_ONE_OUT, SampledKL("score", clip=0.5)])
def test_at_the_reference_no_sample_pulls(objective: SampledKL) -> None:
    leaves = [torch.full((n,), -0.3 * n, requires_grad=True) for n in (1, 3, 2, 2)]
    policy = Scores.from_rows(sample=leaves, chosen=[torch.zeros(1)] * 2)
    same = Scores.from_rows(sample=[row.detach() for row in leaves])
    terms = objective(policy, same)
    terms.losses[0].losses.sum().backward()
    assert all(torch.equal(row.grad, torch.zeros_like(row)) for row in leaves)
    assert terms.metrics["kl/sampled"][0].item() == 0


def sampled(k: int, prompts: int = 2, seed: int = 0) -> tuple[list[Tensor], Scores, Scores]:
    """Leaves and scores of k samples of each prompt, with a pair beside them."""
    generator = torch.Generator().manual_seed(seed)

    def some() -> list[Tensor]:
        return [-3 * torch.rand(1 + i % 4, generator=generator) for i in range(k * prompts)]

    leaves = [row.requires_grad_() for row in some()]
    pair = {name: [-torch.ones(2)] * prompts for name in ("chosen", "rejected")}
    return leaves, scored({**pair, "sample": leaves}), scored({**pair, "sample": some()})


def test_the_metric_is_the_mean_log_ratio_and_not_the_loss() -> None:
    _, policy, reference = sampled(3)
    ratio = (policy.sum("sample") - reference.sum("sample")).detach()
    limit = ratio.abs().sort().values[3:5].mean().item()
    for objective in (SampledKL("score", clip=limit), SampledKL(clip=limit), HyPO(clip=limit)):
        metrics = objective(policy, reference).metrics
        assert metrics["kl/sampled"][0].item() == pytest.approx(ratio.sum().item())
        assert [x.item() for x in metrics["kl/clipped"]] == [2, 6]
        assert metrics["kl/sampled"][1].item() == 6
        assert not any(value.requires_grad for pair in metrics.values() for value in pair)
    assert "kl/clipped" not in SampledKL()(policy, reference).metrics
    for estimator in ("score", "reward_to_go"):
        plain = pulls(SampledKL(estimator))
        assert torch.equal(pulls(SampledKL(estimator, clip=1e6)), plain)
        assert not torch.equal(pulls(SampledKL(estimator, clip=limit)), plain)


def test_a_log_ratio_equal_to_the_clip_is_not_clipped() -> None:
    policy = Scores.from_rows(sample=[torch.tensor([-1.0]), torch.tensor([-1.0])])
    reference = Scores.from_rows(sample=[torch.tensor([-1.75]), torch.tensor([-2.0])])
    clipped, count = SampledKL(clip=0.75)(policy, reference).metrics["kl/clipped"]
    assert (clipped.item(), count.item()) == (1, 2)


def pulls(objective: SampledKL, k: int = 3) -> Tensor:
    """Gradients by the log-prob of every sampled token, flat."""
    leaves, policy, reference = sampled(k)
    objective(policy, reference).losses[0].losses.sum().backward()
    return torch.cat([row.grad for row in leaves])


def test_worked_pulls_on_the_tokens_of_two_samples() -> None:
    """Log-ratios by token: (0.5, -1) and (1, 0.75, 0.25), so D is -0.5 and 2."""
    ratios = [torch.tensor([0.5, -1.0]), torch.tensor([1.0, 0.75, 0.25])]
    expected = {
        SampledKL("score"): ([-0.5, -0.5], [2, 2, 2]),
        SampledKL("score", "leave_one_out"): ([-2.5, -2.5], [2.5, 2.5, 2.5]),
        SampledKL("score", clip=0.75): ([-0.5, -0.5], [0.75, 0.75, 0.75]),
        SampledKL("k2"): ([-0.5, -0.5], [2, 2, 2]),
        SampledKL("reward_to_go"): ([-0.5, -1], [2, 1, 0.25]),
        SampledKL("reward_to_go", "leave_one_out"): ([-2.5, -2], [2.5, 2, 0.25]),
        SampledKL("reward_to_go", clip=0.75): ([-0.5, -0.75], [0.75, 0.75, 0.25]),
    }
    for objective, pull in expected.items():
        rows = [(-ratio.abs()).requires_grad_() for ratio in ratios]
        policy = Scores.from_rows(sample=rows, chosen=[torch.zeros(1)])
        reference = Scores.from_rows(sample=[row.detach() - r for row, r in zip(rows, ratios, strict=True)])
        (term,) = objective(policy, reference).losses
        assert term.losses.tolist() == [-0.5, 2.0], objective
        term.losses.sum().backward()
        assert [row.grad.tolist() for row in rows] == list(pull), objective


def test_leave_one_out_looks_at_the_other_samples_of_the_same_prompt_alone() -> None:
    leaves, policy, reference = sampled(2)
    LEAVE_ONE_OUT(policy, reference).losses[0].losses.sum().backward()
    D = (policy.sum("sample") - reference.sum("sample")).detach()
    weights = torch.stack([row.grad[0] for row in leaves])
    expected = torch.stack([D[0] - D[1], D[1] - D[0], D[2] - D[3], D[3] - D[2]])
    assert torch.allclose(weights, expected, atol=1e-6)
    # one sample of each prompt: nothing is subtracted
    for estimator in ("score", "reward_to_go"):
        assert torch.equal(pulls(SampledKL(estimator), 1), pulls(SampledKL(estimator, "leave_one_out"), 1))
    alone = Scores.from_rows(sample=[torch.zeros(1)] * 2)
    with pytest.raises(ValueError, match="needs pairs beside the samples"):
        LEAVE_ONE_OUT(alone, alone)


@pytest.mark.parametrize("objective", [o for _, o, _ in OFFERED] + [HyPO(estimator="reward_to_go")])
def test_a_batch_without_samples_adds_nothing(objective: Objective) -> None:
    batch = pack([], branches=("chosen", "rejected", "sample"))
    logp = torch.zeros(1, requires_grad=True)
    empty = Scores({"logp": logp}, batch.owner, batch.sequences, batch.lengths, places=batch.places)
    loss = torch.stack([t.losses.sum() for t in objective(empty, empty).losses]).sum()
    loss.backward()
    assert loss.item() == 0
    assert logp.grad.item() == 0


def test_a_packed_batch_has_samples_prompt_by_prompt() -> None:
    examples = [
        Example((Tree([7], (Branch("chosen", [p]), *(Branch("sample", [p, s], index=s) for s in range(3)))),))
        for p in range(2)
    ]
    batch = pack(examples)
    assert batch.units["sequences:sample"] == 6.0
    ends = batch.targets[batch.lengths.cumsum(0) - 1]
    assert ends[batch.sequences["sample"]].view(2, 3).tolist() == [[0, 1, 2]] * 2


def test_k2_refuses_what_it_cannot_have() -> None:
    for kind in (SampledKL, HyPO):
        for name, value in (("baseline", "leave_one_out"), ("clip", 1.0)):
            with pytest.raises(ValueError, match=f"k2 has no {name}: its gradient is that of score without one"):
                kind(estimator="k2", **{name: value})
    raw = {"name": "hypo", "estimator": "k2", "baseline": "leave_one_out"}
    (problem,) = parse_objective(raw)[1]
    assert problem.path == ("objective", "baseline")
    assert problem.text.endswith("Remove baseline, or use estimator: score.")
    (problem,) = parse_objective({"name": "sampled_kl", "estimator": "k3"})[1]
    assert problem.text.startswith("expected one of score, k2, reward_to_go")


# ---- hypo


def test_hypo_without_its_kl_is_dpo_to_the_bit() -> None:
    policy, reference = random_pairs(0)
    hypo = HyPO(beta=0.3, label_smoothing=0.1, kl_weight=0.0)
    assert hypo.branches == ("chosen", "rejected")
    assert hypo.units == ("examples",)
    ours, dpo = hypo(policy, reference), DPO(0.3, 0.1)(policy, reference)
    assert len(ours.losses) == 1
    assert torch.equal(ours.losses[0].losses * ours.losses[0].weight, dpo.losses[0].losses)
    assert all(torch.equal(ours.metrics[k][0], dpo.metrics[k][0]) for k in dpo.metrics | ours.metrics)


def test_hypo_is_dpo_plus_the_sampled_kl() -> None:
    _, policy, reference = sampled(2)
    hypo = HyPO(beta=0.3, kl_weight=0.01, estimator="reward_to_go", baseline="leave_one_out", clip=2.0)
    assert hypo.branches == ("chosen", "rejected", "sample")
    assert hypo.reference_branches == hypo.branches
    assert hypo.units == ("examples", "sequences:sample")
    preference, kl = hypo(policy, reference).losses
    assert torch.equal(preference.losses, DPO(0.3)(policy, reference).losses[0].losses)
    own = SampledKL("reward_to_go", "leave_one_out", 2.0)(policy, reference).losses[0]
    assert torch.equal(kl.losses, own.losses)
    assert (kl.weight, kl.unit) == (0.01, "sequences:sample")
    # beside a loss without a reference, the samples alone are scored under it
    assert WeightedSum(((SimPO(), 1.0), (SampledKL(), 0.1))).reference_branches == ("sample",)


# ---- superhf


def survivors(count: int = 5, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    rows = [-2 * torch.rand(1 + i % 3, generator=generator) for i in range(count)]
    scores = Scores.from_rows(survivor=rows)
    kl = torch.rand(len(scores.owner), generator=generator)
    return replace(scores, tokens={**scores.tokens, "kl_forward": kl})


def test_superhf_is_a_token_mean_and_a_kl_by_sequence() -> None:
    scores = survivors()
    superhf = SuperHF()
    assert superhf.kl_weight == 0.35
    assert superhf.branches == superhf.reference_branches == ("survivor",)
    assert superhf.units == ("tokens:survivor", "sequences:survivor")
    assert superhf.reads() == (LogProb(), KLToReference("forward"))
    likelihood, prior = superhf(scores, scores).losses
    assert torch.equal(likelihood.losses, NLL(branch="survivor")(scores, None).losses[0].losses)
    by_hand = [scores.of_sequence(i, "kl_forward").mean().item() for i in range(5)]
    assert prior.losses.tolist() == pytest.approx(by_hand)
    assert (likelihood.unit, prior.unit, prior.weight) == (*superhf.units, 0.35)
    # whatever stands beside it, a survivor's KL is its own
    fewer = replace(scores, sequences={"survivor": torch.tensor([3])})
    assert superhf(fewer, fewer).losses[1].losses.item() == prior.losses[3].item()
    without = SuperHF(kl_weight=0.0)
    assert not without.needs_reference
    assert without.reads() == (LogProb(),)
    assert without.units == ("tokens:survivor",)


def test_the_released_form_adds_the_kl_up() -> None:
    scores = survivors()
    released = SuperHF(released=True)
    assert released.units == ("tokens:survivor", "step")
    for ours, theirs in zip(SuperHF()(scores, scores).losses, released(scores, scores).losses, strict=True):
        assert torch.equal(ours.losses, theirs.losses)
        assert ours.weight == theirs.weight
    assert released(scores, scores).losses[1].unit == "step"


def test_likelihood_and_kl_count_sequences_where_a_prompt_has_several() -> None:
    for norm in ("seq_mean", "sum"):
        assert NLL(branch="sample", norm=norm).units == ("sequences:sample",)
        assert KL(branch="survivor", norm=norm).units == ("sequences:survivor",)
    assert KL(branch="sample").units == ("tokens:sample",)


class Summed(IPO):
    """IPO whose losses are added up over the optimizer step."""

    @property
    def units(self) -> tuple[str, ...]:
        return ("step",)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        terms = super().__call__(policy, reference)
        return Terms((replace(terms.losses[0], unit="step"),), terms.metrics)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_term_of_a_step_is_divided_by_nothing(accumulation: int, tmp_path: Path) -> None:
    runs = []
    for objective in (IPO(tau=0.5), Summed(tau=0.5)):
        options = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        run = trainer(tmp_path / type(objective).__name__, objective, max_steps=1, learning_rate=1e-4, **options)
        run.train()
        runs.append(history(run, "loss", "grad_norm")[0])
    assert runs[1] == pytest.approx([8 * value for value in runs[0]], rel=1e-5)


def test_sections_name_what_is_not_offered() -> None:
    section = re.search(r"^## sampled_kl.*?(?=^## )", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    for word in ("k1", "k3", "full-vocabulary"):
        assert word in section.group()
