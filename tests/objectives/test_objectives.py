"""Every objective: worked numbers, pulls, gradients, extremes, and the identities of the methods."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.cases import CASES, SUMS
from objectives.worked import ANCHORS, POLICY, REFERENCE, Case
from torch import Tensor

from align.engine.reads import CollisionProbability, Hidden, KLToReference, LogProb, Score
from align.engine.scores import Scores
from align.objectives import (
    DPO,
    IPO,
    KL,
    NLL,
    OBJECTIVES,
    RPO,
    WGA,
    FlexDPO,
    Hinge,
    KTOForget,
    Objective,
    SimPO,
    WeightedSum,
)

ALL = [pytest.param(case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)]
ALL += [pytest.param(case, id=f"sum-{i}") for i, case in enumerate(SUMS)]
PAIRWISE = [pytest.param(p.values[0], id=p.id) for p in ALL if p.values[0].d_w is not None]
HELD = {"rtol": 1e-9, "atol": 1e-9}


def rows(values: dict[str, Iterable[Iterable[float]]], dtype: torch.dtype = torch.float64) -> dict[str, list[Tensor]]:
    return {name: [torch.tensor(row, dtype=dtype) for row in branch] for name, branch in values.items()}


def scored(
    branches: dict[str, list[Tensor]], anchors: Mapping[str, Mapping[str, Sequence[float]]] | None = None
) -> Scores:
    """Scores of per-token log-probs; reads of the vocabulary are those of two words (see ``cases``), and hidden
    states are the log-probs themselves. ``anchors`` are sums by model and branch.
    """
    scores = Scores.from_rows(**branches)
    logits = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log().expand(len(scores.owner), 2)
    reference = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log().expand(len(scores.owner), 2)
    kinds = (KLToReference("forward"), KLToReference("reverse"), CollisionProbability())
    reads = {read.name: read.chunk(logits, scores.owner, reference) for read in kinds}
    hidden = {Hidden(1, at="target").name: scores.tokens["logp"][:, None]}
    known = {name: torch.full((len(scores.lengths),), math.nan, dtype=torch.float64) for name in anchors or {}}
    for name, values in (anchors or {}).items():
        for branch, sums in values.items():
            known[name][scores.sequences[branch]] = torch.tensor(sums, dtype=torch.float64)
    # a reward model's score of an answer is the sum of its log-probs, so that gradients and pulls go the same way
    score = {
        Score().name: scores.tokens["logp"]
        .new_zeros(len(scores.lengths))
        .index_add(0, scores.owner, scores.tokens["logp"])
    }
    return replace(scores, tokens={**scores.tokens, **reads, **hidden, **score}, anchors=known)


def worked(dtype: torch.dtype = torch.float64) -> tuple[dict[str, list[Tensor]], Scores, Scores]:
    """Leaves that require a gradient, the policy's scores made of them, the reference's."""
    leaves = {name: [row.requires_grad_() for row in branch] for name, branch in rows(POLICY, dtype).items()}
    return leaves, scored(leaves, ANCHORS), scored(rows(REFERENCE, dtype))


def total(objective: Objective, policy: Scores, reference: Scores) -> Tensor:
    """The loss of an optimizer step over just these pairs."""
    units = {"examples": 2.0, "step": 1.0}
    units |= {f"tokens:{name}": float(policy.count(name).sum()) for name in policy.sequences}
    units |= {f"sequences:{name}": float(len(ids)) for name, ids in policy.sequences.items()}
    terms = objective(policy, reference if objective.needs_reference else None)
    assert {t.unit for t in terms.losses} <= set(objective.units)
    assert all(set(objective.branches) >= _branches(t.unit) for t in terms.losses)
    return sum(t.weight * t.losses.sum() / sum(units[u] for u in t.unit.split("+")) for t in terms.losses)


def _branches(unit: str) -> set[str]:
    return {part.partition(":")[2] for part in unit.split("+")} - {""}


def per_pair(objective: Objective, policy: Scores, reference: Scores | None) -> Tensor:
    terms = objective(policy, reference if objective.needs_reference else None)
    return sum(t.weight * t.losses for t in terms.losses)


def summed(*values: float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Sequences of one token, whose log-prob is the sequence's."""
    return [torch.tensor([v], dtype=dtype) for v in values]


# ---- worked cases


@pytest.mark.parametrize("case", ALL)
def test_worked_numbers(case: Case) -> None:
    _, policy, reference = worked()
    objective = case.objective
    assert torch.allclose(
        per_pair(objective, policy, reference), torch.tensor(case.per_pair, dtype=torch.float64), rtol=1e-9
    )
    assert total(objective, policy, reference).item() == pytest.approx(case.loss, rel=1e-9, abs=0)


@pytest.mark.parametrize("case", ALL)
def test_worked_numbers_in_float32(case: Case) -> None:
    _, policy, reference = worked(torch.float32)
    assert total(case.objective, policy, reference).item() == pytest.approx(case.loss, rel=1e-6, abs=0)


@pytest.mark.parametrize("case", PAIRWISE)
def test_pulls(case: Case) -> None:
    leaves, policy, reference = worked()
    per_pair(case.objective, policy, reference).sum().backward()
    for branch, expected, sign in zip(case.sides, (case.d_w, case.d_l), (-1, 1), strict=True):
        for row, pull in zip(leaves[branch], expected, strict=True):
            gradient = torch.zeros_like(row) if row.grad is None else row.grad
            # every token of an answer is pulled alike
            assert torch.allclose(sign * gradient, torch.full_like(row, pull), **HELD)


def weighs(objective: Objective) -> bool:
    """Whether it multiplies with something that takes no gradient, which differences of the loss would show."""
    named = [getattr(objective, name, None) for name in ("estimator", "use_weighting", "beta_alpha")]
    return isinstance(objective, KL | WGA) or any(named)


SMOOTH = [p for p in ALL if not weighs(p.values[0].objective)]


@pytest.mark.parametrize("case", SMOOTH)
def test_gradients_by_finite_differences(case: Case) -> None:
    leaves, _, reference = worked()
    # z takes no gradient
    fixed = {"alternate"} if isinstance(case.objective, KTOForget) else {"mismatch"}
    moving = [name for name in leaves if name not in fixed]

    def loss(*tensors: Tensor) -> Tensor:
        moved = {name: list(tensors[2 * i : 2 * i + 2]) for i, name in enumerate(moving)}
        branches = {name: moved.get(name, leaves[name]) for name in leaves}
        return per_pair(case.objective, scored(branches, ANCHORS), reference)

    assert torch.autograd.gradcheck(loss, [row for name in moving for row in leaves[name]])


def test_every_objective_has_a_case() -> None:
    for name, kind in OBJECTIVES.items():
        assert CASES.get(name), f"tests/objectives/cases.py has no worked case for {name}"
        assert all(type(case.objective) is kind for case in CASES[name])
    assert set(CASES) == set(OBJECTIVES)


# ---- what holds for all


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("chosen", [-1e4, -300.0, -1e-9])
@pytest.mark.parametrize("rejected", [-1e4, -300.0, -1e-9])
def test_finite_at_extreme_log_probs(case: Case, chosen: float, rejected: float) -> None:
    up, down, still = (summed(value, -3.0, dtype=torch.float32) for value in (chosen, rejected, -3.0))
    for row in (*up, *down):
        row.requires_grad_()
    branches = {"chosen": up, "rejected": down, "alternate": up, "forget": down, "retain": still, "retain_all": still}
    branches |= {
        "desirable": up,
        "undesirable": down,
        "mismatch": still,
        "sample": up,
        "survivor": up,
        "chosen_all": up,
    }
    held = {name: summed(-1e4 if name in ("rejected", "forget", "undesirable") else -5.0, -3.0) for name in branches}
    reference = scored(held)
    terms = case.objective(scored(branches, ANCHORS), reference)
    loss = sum(t.weight * t.losses.sum() for t in terms.losses)
    assert torch.isfinite(loss)
    if loss.requires_grad:
        loss.backward()
    for row in (*branches["chosen"], *branches["rejected"]):
        assert row.grad is None or torch.isfinite(row.grad).all()
    assert all(torch.isfinite(s) and torch.isfinite(c) for s, c in terms.metrics.values())


@pytest.mark.parametrize("case", ALL)
def test_objectives_are_values(case: Case) -> None:
    objective = case.objective
    assert pickle.loads(pickle.dumps(objective)) == objective == copy.deepcopy(objective)
    assert hash(objective) == hash(copy.deepcopy(objective))
    assert {LogProb(), Score()} & set(objective.reads())
    if not isinstance(objective, WeightedSum):
        assert objective.title
        assert objective.paper
        assert objective.equation
        assert objective.when


@pytest.mark.parametrize("case", ALL)
def test_the_loss_depends_on_how_pairs_are_split_only_where_it_says_so(case: Case) -> None:
    def part(branches: dict[str, list[Tensor]], i: int) -> dict[str, list[Tensor]]:
        return {name: rows[i : i + 1] for name, rows in branches.items()}

    differs = False
    for seed in range(4):  # two pairs may happen to be sorted alike
        generator = torch.Generator().manual_seed(seed)
        policy, reference = (
            {
                name: [-(torch.rand(len(row) + 1, generator=generator).double() * 2).cumprod(0)[1:] for row in branch]
                for name, branch in POLICY.items()
            }
            for _ in range(2)
        )
        together = per_pair(case.objective, scored(policy, ANCHORS), scored(reference))
        apart = [
            per_pair(
                case.objective,
                scored(
                    part(policy, i),
                    {name: {b: sums[i : i + 1] for b, sums in values.items()} for name, values in ANCHORS.items()},
                ),
                scored(part(reference, i)),
            )
            for i in range(2)
        ]
        differs |= not torch.allclose(together, torch.cat(apart), rtol=1e-15)
    assert differs is bool(case.objective.coupled)


def test_metrics_of_pairs() -> None:
    _, policy, reference = worked()
    metrics = DPO(beta=0.5)(policy, reference).metrics
    means = {name: (value / count).item() for name, (value, count) in metrics.items()}
    assert means == pytest.approx(
        {
            "rewards/chosen": 0.0625,  # 0.5 (0.75 - 0.5) / 2
            "rewards/rejected": -0.125,
            "rewards/margins": 0.1875,
            "rewards/accuracies": 0.5,
            "logps/chosen": -1.875,
            "logps/rejected": -2.25,
        }
    )
    assert not any(value.requires_grad for pair in metrics.values() for value in pair)
    # each side with its own beta: 0.5 (0.75, -0.5) against 0.1 (-0.5, 0)
    flex = FlexDPO(beta_plus=0.5, beta_minus=0.1)(policy, reference).metrics
    assert (flex["rewards/margins"][0] / 2).item() == pytest.approx((0.425 - 0.25) / 2)
    assert flex["rewards/own_accuracies"][0].item() == 1  # 0.375 > -0.05, and -0.25 < 0
    ties = DPO()(policy, policy).metrics["rewards/accuracies"]
    assert (ties[0] / ties[1]).item() == 0.5


def test_accuracy_does_not_depend_on_an_objectives_own_scales() -> None:
    # d_w = 5.4 and 2, d_l = 5.1 and 3: both sides rose, the first pair's chosen answer more, the second's less
    policy = scored({"chosen": [torch.full((2,), -1.0), torch.full((4,), -1.0)], "rejected": summed(-1.0, -1.0)})
    reference = scored({"chosen": summed(-7.4, -6.0), "rejected": summed(-6.1, -4.0)})
    shares = {}
    for objective in (DPO(), FlexDPO(0.1, 0.03), FlexDPO(0.1, 0.1), IPO(), IPO(reduction="sum"), Hinge(), RPO()):
        metrics = {k: (v / n).item() for k, (v, n) in objective(policy, reference).metrics.items() if "accur" in k}
        assert metrics.pop("rewards/accuracies") == 0.5, objective
        assert (metrics != {}) is objective.own_scales
        shares[repr(objective)] = metrics.get("rewards/own_accuracies")
    assert shares[repr(FlexDPO(0.1, 0.03))] == 1.0  # 0.54 > 0.153, 0.2 > 0.09
    assert shares[repr(IPO())] == 0.0  # 2.7 < 5.1, 0.5 < 3
    both = WeightedSum(((NLL(), 1.0), (FlexDPO(0.1, 0.03), 1.0)))
    assert (both.compares_pairs, both.own_scales, NLL().compares_pairs) == (True, True, False)


# ---- identities


def random_pairs(seed: int, count: int = 16) -> tuple[Scores, Scores]:
    generator = torch.Generator().manual_seed(seed)

    def side() -> dict[str, list[Tensor]]:
        return {
            name: [-4 * torch.rand(3 + i % 4, generator=generator) for i in range(count)]
            for name in ("chosen", "rejected")
        }

    return scored(side()), scored(side())


@pytest.mark.parametrize("beta", [0.03, 0.1, 2.5])
def test_flex_dpo_with_equal_betas_is_dpo_bit_for_bit(beta: float) -> None:
    policy, reference = random_pairs(0)
    flex, dpo = FlexDPO(beta, beta)(policy, reference), DPO(beta)(policy, reference)
    assert torch.equal(flex.losses[0].losses, dpo.losses[0].losses)
    assert flex.metrics.keys() == dpo.metrics.keys()
    assert all(torch.equal(flex.metrics[k][0], dpo.metrics[k][0]) for k in dpo.metrics)


@pytest.mark.parametrize(
    ("objective", "at_start"),
    [
        (DPO(0.1), math.log(2)),
        (DPO(7.0, label_smoothing=0.2), math.log(2)),
        (FlexDPO(0.1, 0.02), math.log(2)),
        (FlexDPO(3.0, 0.5), math.log(2)),
        (Hinge(0.3), 1.0),
        (IPO(0.25), 4.0),
        (IPO(0.25, "sum"), 4.0),
    ],
)
def test_where_policy_and_reference_agree(objective: Objective, at_start: float) -> None:
    policy, _ = random_pairs(1)
    losses = per_pair(objective, policy, policy)
    assert torch.allclose(losses, torch.full_like(losses, at_start), rtol=1e-6)


@pytest.mark.parametrize("preset", ["handbook", "openrlhf"])
def test_rpo_without_imitation_is_dpo(preset: str) -> None:
    policy, reference = random_pairs(2)
    rpo = per_pair(RPO(preset, beta=0.2, eta=0.0), policy, reference)
    assert torch.equal(rpo, per_pair(DPO(0.2), policy, reference))


@pytest.mark.parametrize("eta", [0.001, 0.005, 0.3])
def test_rpo_pulls_the_chosen_answer_harder_by_beta_eta(eta: float) -> None:
    leaves, policy, reference = worked()
    per_pair(RPO("handbook", beta=0.3, eta=eta), policy, reference).sum().backward()
    for chosen, rejected in zip(leaves["chosen"], leaves["rejected"], strict=True):
        assert (-chosen.grad[0] - rejected.grad[0]).item() == pytest.approx(0.3 * eta, rel=1e-9, abs=0)


def test_rpo_is_affine_in_eta_with_the_slope_of_its_likelihood_term() -> None:
    policy, reference = random_pairs(3)
    low, high = (per_pair(RPO("handbook", beta=0.3, eta=e), policy, reference) for e in (0.1, 0.6))
    assert torch.allclose((high - low) / 0.5, -0.3 * policy.sum("chosen"), rtol=1e-4)


def test_rpo_imitation_outweighs_preference_beyond_the_stated_margin() -> None:
    eta, beta = 0.005, 1.0
    edge = math.log((1 - eta) / eta)
    assert edge == pytest.approx(5.29, abs=5e-3)
    for margin, wins in ((edge - 0.01, False), (edge + 0.01, True)):
        pull = torch.sigmoid(torch.tensor(-margin)).item()  # DPO's own pull over beta, against eta
        assert (eta > pull) is wins
    chosen = torch.tensor([0.0], requires_grad=True)
    policy = scored({"chosen": [chosen], "rejected": summed(-edge, dtype=torch.float32)})
    reference = scored({"chosen": summed(0.0, dtype=torch.float32), "rejected": summed(0.0, dtype=torch.float32)})
    per_pair(RPO("handbook", beta=beta, eta=eta), policy, reference).sum().backward()
    assert -chosen.grad.item() == pytest.approx(2 * eta, rel=1e-4, abs=0)


def test_the_two_released_forms_of_rpo_agree_at_eighty_tokens() -> None:
    # relative to DPO's pull: eta / s against 0.2 / (0.5 T s); 0.005 = 0.2 / (0.5 * 80)
    tokens = torch.full((80,), -0.1, dtype=torch.float64)
    policy = scored({"chosen": [tokens], "rejected": [tokens]})
    pulls = {}
    for preset in ("handbook", "openrlhf"):
        rpo = RPO(preset)
        imitation = rpo(policy, policy).losses[1]
        beta = 0.01 if preset == "handbook" else 0.5
        pulls[preset] = imitation.weight * imitation.losses.item() / policy.sum("chosen").abs().item() / beta
    assert pulls["handbook"] == pytest.approx(pulls["openrlhf"], rel=1e-9, abs=0)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), ratio=st.floats(0.02, 50.0))
def test_chosen_up_and_rejected_down_inside_the_interval_of_betas(seed: int, ratio: float) -> None:
    """A plain gradient step of Flex-DPO raises the chosen log-prob and lowers the rejected one exactly where
    ip / |g_l|^2 < beta_minus / beta_plus < |g_w|^2 / ip.
    """
    generator = torch.Generator().manual_seed(seed)
    g_w = torch.randn(6, generator=generator, dtype=torch.float64)
    g_l = torch.randn(6, generator=generator, dtype=torch.float64)
    g_l = g_l if g_w @ g_l > 0 else -g_l
    inner = (g_w @ g_l).item()
    low, high = inner / g_l.square().sum().item(), g_w.square().sum().item() / inner
    assert low <= high
    assert math.sqrt(low * high) == pytest.approx((g_w.norm() / g_l.norm()).item())
    if min(abs(ratio / low - 1), abs(ratio / high - 1)) < 1e-6:
        return
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    policy = scored({"chosen": [(theta @ g_w)[None] - 1], "rejected": [(theta @ g_l)[None] - 2]})
    reference = scored({"chosen": summed(-1.5), "rejected": summed(-1.5)})
    per_pair(FlexDPO(beta_plus=1.0, beta_minus=ratio), policy, reference).sum().backward()
    step = -theta.grad
    chosen_rises, rejected_falls = (step @ g_w).item() > 0, (step @ g_l).item() < 0
    assert (chosen_rises and rejected_falls) is (low < ratio < high)


@pytest.mark.parametrize("betas", [(0.1, 0.1), (0.1, 0.03)])
def test_in_probability_space_the_rejected_answer_is_pushed_by_the_ratio_of_probabilities(betas: tuple) -> None:
    p = torch.tensor([0.3, 0.02], dtype=torch.float64, requires_grad=True)
    policy = scored({"chosen": [p[:1].log()], "rejected": [p[1:].log()]})
    reference = scored({"chosen": summed(math.log(0.2)), "rejected": summed(math.log(0.1))})
    per_pair(FlexDPO(*betas), policy, reference).sum().backward()
    ratio = (p.grad[1] / p.grad[0]).item()
    assert ratio == pytest.approx(-(betas[1] / betas[0]) * 0.3 / 0.02, rel=1e-9, abs=0)


@pytest.mark.parametrize(("betas", "still"), [((0.1, 0.1), True), ((0.1, 0.05), False)])
def test_unseen_answers_move_only_where_the_betas_differ(betas: tuple, still: bool) -> None:
    logits = torch.tensor([0.3, -0.2, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)
    policy = scored({"chosen": [logp[:1]], "rejected": [logp[1:2]]})
    reference = scored({"chosen": summed(-1.0), "rejected": summed(-1.0)})
    per_pair(FlexDPO(*betas), policy, reference).sum().backward()
    assert (logits.grad[2:].abs().max().item() < 1e-15) is still
    assert logits.grad[0] < 0


def test_rewards_of_ipo_are_scaled_with_tau() -> None:
    policy = scored({"chosen": summed(-1.0), "rejected": summed(-2.0)})
    reference = scored({"chosen": summed(-2.5), "rejected": summed(-1.5)})
    metrics = IPO(tau=0.2, reduction="sum")(policy, reference).metrics
    assert metrics["rewards/chosen"][0].item() == pytest.approx(0.3)
    assert metrics["rewards/rejected"][0].item() == pytest.approx(-0.1)
    assert metrics["rewards/margins"][0].item() == pytest.approx(0.4)


def test_flex_dpo_without_beta_minus_never_looks_at_the_rejected_answer() -> None:
    policy, reference = random_pairs(4)
    other, _ = random_pairs(5)
    tokens = {**policy.tokens, "logp": torch.where(policy.owner < 16, policy.tokens["logp"], other.tokens["logp"])}
    assert torch.equal(
        per_pair(FlexDPO(0.1, 0.0), policy, reference),
        per_pair(FlexDPO(0.1, 0.0), replace(policy, tokens=tokens), reference),
    )


def test_simpo_needs_no_reference_and_starts_from_lengths_alone() -> None:
    simpo = SimPO(beta=2.0, gamma=0.6)
    assert not simpo.needs_reference
    same = scored({"chosen": [torch.full((7,), -0.5)], "rejected": [torch.full((3,), -0.5)]})
    assert per_pair(simpo, same, None).item() == pytest.approx(math.log1p(math.exp(0.6)), rel=1e-6, abs=0)
