"""Unlearning: what the papers say of their losses, where they must agree, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from objectives.test_objectives import per_pair, scored, summed, total, worked
from scipy.special import lambertw
from torch import Tensor

from align.engine.reads import Hidden
from align.engine.scores import Scores
from align.objectives import (
    DPO,
    FLAT,
    IDK,
    KL,
    NLL,
    NPO,
    RMU,
    WGA,
    GradAscent,
    IdkDPO,
    KTOForget,
    Objective,
    SimNPO,
    WeightedSum,
)
from align.objectives.flat import activation, conjugate, lambert_w_of_exp
from align.recipe.objective import combined, parse_objective

DIVERGENCES = ("kl", "total_variation", "jensen_shannon", "pearson", "jeffrey")
BETAS = (0.05, 0.1, 1.0, 4.5)


def random_rows(seed: int, count: int = 12) -> dict[str, list[Tensor]]:
    """Log-probs of answers of 1 to 6 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: [-3 * torch.rand(1 + (i + k) % 6, generator=generator, dtype=torch.float64) for i in range(count)]
        for k, name in enumerate(("forget", "alternate", "retain"))
    }


def gradient(objective: Objective, rows: dict[str, list[Tensor]], reference: Scores | None = None) -> Tensor:
    """Of the sum over examples, by every token of the forget answers."""
    leaves = {name: [row.clone().requires_grad_() for row in branch] for name, branch in rows.items()}
    terms = objective(scored(leaves), reference)
    sum(t.weight * t.losses.sum() for t in terms.losses).backward()
    return torch.cat([row.grad for row in leaves["forget"]])


# ---- where policy and reference agree


@pytest.mark.parametrize("beta", BETAS)
def test_losses_at_the_start(beta: float) -> None:
    policy = scored(random_rows(0))
    for objective, at_start in (
        (NPO(beta), 2 * math.log(2) / beta),
        (IdkDPO(beta), 2 * math.log(2) / beta),
        (KTOForget(beta=beta), 1 + 2 * math.log(2) / beta),
        (KTOForget("sigmoid", beta=beta), 1 - 1 / beta),
    ):
        losses = per_pair(objective, policy, policy)
        assert torch.allclose(losses, torch.full_like(losses, at_start), rtol=1e-12), objective
    assert 2 * math.log(2) / 0.1 == pytest.approx(13.8629, abs=1e-4)


@pytest.mark.parametrize("beta", BETAS)
def test_npo_is_gradient_ascent_times_its_weight(beta: float) -> None:
    rows, other = random_rows(1), scored(random_rows(2))
    ascent = gradient(GradAscent("sum"), rows)
    policy = scored(rows)
    assert torch.allclose(gradient(NPO(beta), rows, policy), ascent, rtol=1e-12)  # the weight is 1 at the start
    ratio = policy.sum("forget") - other.sum("forget")
    weight = 2 * ratio.mul(beta).exp() / (1 + ratio.mul(beta).exp())
    assert weight.min() < 0.98
    assert weight.max() > 1.02
    per_token = torch.repeat_interleave(weight, torch.tensor([len(row) for row in rows["forget"]]))
    assert torch.allclose(gradient(NPO(beta), rows, other), per_token * ascent, rtol=1e-10)
    mean, count = NPO(beta)(policy, other).metrics["weight/forget"]
    assert (mean / count).item() == pytest.approx(weight.mean().item())


def test_npo_grows_without_end_where_an_answer_became_likelier() -> None:
    policy, reference = scored({"forget": summed(-1.0)}), scored({"forget": summed(-501.0)})
    assert per_pair(NPO(0.1), policy, reference).item() == pytest.approx(1000.0, rel=1e-12, abs=0)  # 2 / 0.1 * 50


def test_towards_beta_zero_npo_and_simnpo_are_gradient_ascent() -> None:
    beta = 1e-7
    policy, reference = scored(random_rows(1)), scored(random_rows(2))
    ratio = policy.sum("forget") - reference.sum("forget")
    assert torch.allclose(per_pair(NPO(beta), policy, reference) - 2 / beta * math.log(2), ratio, rtol=1e-5, atol=1e-6)
    assert torch.allclose(
        per_pair(SimNPO(beta), policy, None) - 2 / beta * math.log(2), policy.mean("forget"), rtol=1e-5, atol=1e-6
    )
    for each in BETAS:
        assert per_pair(NPO(each), policy, reference).min() > 0


def test_idk_dpo_is_dpo_and_without_its_alternate_npo() -> None:
    rows, other = random_rows(3), random_rows(4)
    as_pair = [
        scored({"chosen": r["alternate"], "rejected": r["forget"], "alternate": r["alternate"], "forget": r["forget"]})
        for r in (rows, other)
    ]
    assert torch.allclose(per_pair(IdkDPO(0.3), *as_pair), 2 / 0.3 * per_pair(DPO(0.3), *as_pair), rtol=1e-14)
    pair = IdkDPO(0.3)(*as_pair).metrics
    assert pair["rewards/margins"][0].item() == pytest.approx(DPO(0.3)(*as_pair).metrics["rewards/margins"][0].item())
    still = scored({**other, "alternate": rows["alternate"]})
    assert torch.allclose(
        per_pair(IdkDPO(0.3), scored(rows), still), per_pair(NPO(0.3), scored(rows), still), rtol=1e-12
    )


def test_kto_with_alternates_at_the_reference_is_npo_plus_one() -> None:
    rows, other = random_rows(3), random_rows(4)
    still = scored({**other, "alternate": rows["alternate"]})
    assert torch.allclose(
        per_pair(KTOForget(beta=0.3), scored(rows), still), 1 + per_pair(NPO(0.3), scored(rows), still), rtol=1e-12
    )


def test_the_reference_point_of_kto_takes_no_gradient_and_is_not_cut_off_at_zero() -> None:
    leaves, policy, reference = worked()
    lower = scored({**{k: v for k, v in leaves.items() if k != "alternate"}, "alternate": summed(-9.0, -3.0)})
    loss = per_pair(KTOForget(beta=0.5), lower, reference)
    # z = (-9 + 2.5 - 3 + 1.5) / 2 = -4
    assert loss[1].item() == pytest.approx(1 + 4 * math.log1p(math.exp(4.0)))
    per_pair(KTOForget(beta=0.5), policy, reference).sum().backward()
    assert all(row.grad is None or not row.grad.any() for row in leaves["alternate"])
    assert all(row.grad.all() for row in leaves["forget"])


# ---- lengths


def test_simnpo_does_not_see_lengths_and_npo_does() -> None:
    rows = random_rows(5)
    twice = {name: [torch.cat([row, row]) for row in branch] for name, branch in rows.items()}
    assert torch.allclose(per_pair(SimNPO(), scored(rows), None), per_pair(SimNPO(), scored(twice), None), rtol=1e-12)
    still = scored({name: [0 * row - 1 for row in branch] for name, branch in rows.items()})
    still_twice = scored({name: [0 * row - 1 for row in branch] for name, branch in twice.items()})
    once = per_pair(NPO(1.0), scored(rows), still)
    assert (per_pair(NPO(1.0), scored(twice), still_twice) - once).abs().max() > 0.1


def test_idk_is_one_mean_and_not_two() -> None:
    _, policy, reference = worked()
    two = WeightedSum(((NLL(branch="alternate"), 1.0), (NLL(branch="retain"), 1.0)))
    assert total(IDK(), policy, reference).item() == pytest.approx(5.5 / 7)
    assert total(two, policy, reference).item() == pytest.approx(3.75 / 4 + 1.75 / 3)
    assert IDK().units == ("tokens:alternate+tokens:retain",)


# ---- weighted gradient ascent


@pytest.mark.parametrize("norm", ["token_mean", "seq_mean", "sum"])
def test_gradient_ascent_is_minus_the_likelihood_term(norm: str) -> None:
    policy = scored(random_rows(6))
    assert torch.equal(
        per_pair(GradAscent(norm), policy, None), -per_pair(NLL(branch="forget", norm=norm), policy, None)
    )
    assert GradAscent(norm).units == NLL(branch="forget", norm=norm).units


def test_wga_without_weights_is_gradient_ascent() -> None:
    policy = scored(random_rows(6))
    assert torch.equal(per_pair(WGA(beta=0.0), policy, None), per_pair(GradAscent(), policy, None))


def test_wga_follows_the_mean_token_probability() -> None:
    rows = random_rows(7)
    # d exp(l) / d l = exp(l); and not (1 + l) exp(l), which the weight's own gradient would add
    assert torch.allclose(gradient(WGA(), rows), torch.cat(rows["forget"]).exp(), rtol=1e-12)
    assert torch.allclose(gradient(WGA(beta=2.5), rows), (2.5 * torch.cat(rows["forget"])).exp(), rtol=1e-12)


def test_flat_forgets_in_the_direction_of_wga_where_probabilities_are_small() -> None:
    rows = random_rows(7)
    flat = gradient(FLAT(denominator="padded", padded_length=100_001), rows)
    assert torch.allclose(flat * 2 * 100_000, gradient(WGA(), rows), rtol=1e-6)


# ---- flat


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_flat_lowers_the_forget_answer_and_raises_the_alternate(divergence: str) -> None:
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    alternate, forget = (g.flatten().clone().requires_grad_() for g in torch.meshgrid(grid, grid, indexing="ij"))
    loss = conjugate(forget, divergence) - activation(alternate, divergence)
    down, up = torch.autograd.grad(loss.sum(), (alternate, forget))
    assert down.max() < 0 < up.min()


def test_gradients_of_flat_at_one_half() -> None:
    found = {}
    for divergence in DIVERGENCES:
        alternate, forget = (torch.tensor(0.5, dtype=torch.float64, requires_grad=True) for _ in range(2))
        loss = conjugate(forget, divergence) - activation(alternate, divergence)
        found[divergence] = [g.item() for g in torch.autograd.grad(loss, (alternate, forget))]
    expected = {
        "kl": [-1.0, 0.6065306597],
        "total_variation": [-0.3932238665, 0.3932238665],
        "jensen_shannon": [-0.3775406688, 0.6224593312],
        "pearson": [-1.0, 1.25],
        "jeffrey": [-1.0, 1.0 / lambertw(math.exp(0.5)).real],
    }
    assert found == {name: pytest.approx(values, rel=1e-9, abs=0) for name, values in expected.items()}


def test_flat_where_both_answers_are_equally_likely() -> None:
    p = torch.linspace(0, 1, 11, dtype=torch.float64)
    loss = {d: conjugate(p, d) - activation(p, d) for d in DIVERGENCES}
    assert not loss["total_variation"].any()
    assert torch.allclose(loss["pearson"], p.square() / 4, atol=1e-15)
    assert torch.allclose(loss["kl"], (p - 1).exp() - p, atol=1e-15)
    assert loss["kl"].min() >= 0
    assert torch.allclose(loss["jensen_shannon"], 2 * (-p).exp().log1p() + p - 2 * math.log(2), atol=1e-15)


def test_the_composed_forms_of_flat_are_the_conjugates_of_the_activations() -> None:
    v = torch.linspace(0, 1, 101, dtype=torch.float64)
    w = torch.from_numpy(lambertw(np.exp(1 - v.numpy())).real)
    conjugates = {
        "kl": lambda u: (u - 1).exp(),
        "total_variation": lambda u: u,
        "jensen_shannon": lambda u: -(2 - u.exp()).log(),
        "pearson": lambda u: u.square() / 4 + u,
        "jeffrey": lambda u: w + 1 / w + u - 2,
    }
    for name, conjugate_of in conjugates.items():
        assert (conjugate(v, name) - conjugate_of(activation(v, name))).abs().max() < 2e-15, name
    # the released polynomial, which this is not
    taylor = v + v.square() / 4 + v**3 / 16
    assert 0.01 < (conjugate(v, "jeffrey") - taylor).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lambert_w(dtype: torch.dtype) -> None:
    s = torch.linspace(0, 1, 57, dtype=dtype, requires_grad=True)
    w = lambert_w_of_exp(s)
    exact = torch.from_numpy(lambertw(np.exp(s.detach().double().numpy())).real)
    assert (w.double() - exact).abs().max() < 4 * torch.finfo(dtype).eps
    (slope,) = torch.autograd.grad(w.sum(), s)
    assert (slope.double() - exact / (1 + exact)).abs().max() < 4 * torch.finfo(dtype).eps
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambert_w_of_exp, s)


def test_padding_shrinks_the_released_probability_alone() -> None:
    rows = random_rows(8)
    policy = scored(rows)
    loss = {n: per_pair(FLAT("pearson", "padded", n), policy, None) for n in (51, 101)}
    p = {name: policy.total(name, policy.tokens["logp"].exp()) for name in ("alternate", "forget")}
    for length, found in loss.items():
        forget, alternate = p["forget"] / (length - 1), p["alternate"] / (length - 1)
        assert torch.allclose(found, forget.square() / 4 + forget - alternate, rtol=1e-12)
    assert torch.equal(per_pair(FLAT(padded_length=51), policy, None), per_pair(FLAT(padded_length=101), policy, None))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_flat_per_batch_applies_the_divergence_to_the_mean(divergence: str) -> None:
    policy = scored(random_rows(9))
    mean = {
        name: (policy.total(name, policy.tokens["logp"].exp()) / policy.count(name)).mean()
        for name in ("alternate", "forget")
    }
    loss = per_pair(FLAT(divergence, per="batch"), policy, None)
    expected = conjugate(mean["forget"], divergence) - activation(mean["alternate"], divergence)
    assert loss.shape == (12,)
    assert torch.allclose(loss, expected.expand(12), rtol=1e-12)
    apart = per_pair(FLAT(divergence), policy, None).mean()
    assert (apart - expected).abs() > 1e-5  # Jensen's gap


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("reverse_kl", "raises the forget answer and lowers the alternate one"),
        ("squared_hellinger", "raises the forget answer and lowers the alternate one"),
        ("neyman", "lowers the alternate answer as well as the forget one"),
    ],
)
def test_divergences_that_do_not_unlearn_are_refused(name: str, why: str) -> None:
    parts, problems = parse_objective({"name": "flat", "divergence": name})
    assert not parts
    assert [(p.path, p.text) for p in problems] == [
        (
            ("objective", "divergence"),
            f"{name} does not unlearn: its released form {why}. Use kl, total_variation, jensen_shannon, pearson or "
            "jeffrey.",
        )
    ]


# ---- rmu


def test_rmu_is_zero_exactly_at_its_target() -> None:
    rmu = RMU(layer=0, steering=6.5, retain_weight=0.0)
    policy = scored(random_rows(10))
    states = torch.zeros(len(policy.owner), 8, dtype=torch.float64)
    target = 6.5 * rmu.direction(states)
    assert target.norm().item() == pytest.approx(6.5, rel=1e-12, abs=0)
    assert target.min() >= 0  # uniform on [0, 1), not centred
    assert not torch.equal(target, 6.5 * RMU(layer=0, seed=1).direction(states))
    name = Hidden(1, at="target").name
    there = replace(policy, tokens={**policy.tokens, name: target.expand_as(states)})
    assert per_pair(rmu, there, None).abs().max() == 0
    beside = replace(policy, tokens={**policy.tokens, name: (target + 0.5).expand_as(states)})
    assert torch.allclose(per_pair(rmu, beside, None), torch.full((12,), 0.25, dtype=torch.float64), rtol=1e-12)


def test_rmu_without_its_retain_term_needs_neither_rows_nor_reference() -> None:
    alone = RMU(retain_weight=0.0)
    assert (alone.branches, alone.needs_reference, alone.reference_branches) == (("forget",), False, ())
    both = RMU()
    assert (both.branches, both.needs_reference, both.reference_branches) == (("forget", "retain"), True, ("retain",))
    assert both.reads()[1] == Hidden(8, at="target")


def test_rmu_matches_tokens_of_a_reference_that_scored_the_retained_rows_alone() -> None:
    rows, other = random_rows(11), random_rows(12)
    narrow = scored({"retain": other["retain"]})
    assert torch.equal(
        per_pair(RMU(layer=0), scored(rows), narrow), per_pair(RMU(layer=0), scored(rows), scored(other))
    )


# ---- branches


def test_positions_choose_the_branch() -> None:
    both = WeightedSum(((NLL(branch="retain", positions="all"), 1.0), (KL(branch="forget", positions="all"), 1.0)))
    assert both.branches == ("retain_all", "forget_all")
    assert both.units == ("tokens:retain_all", "tokens:forget_all")
    assert NLL(branch="retain", positions="all", norm="sum").units == ("sequences:retain_all",)


def test_a_recipes_list_is_the_method() -> None:
    parts, problems = parse_objective(
        [{"name": "npo", "beta": 0.2}, {"name": "kl", "branch": "retain", "weight": 0.5, "positions": "all"}]
    )
    assert not problems
    assert combined(parts) == WeightedSum(((NPO(0.2), 1.0), (KL(branch="retain", positions="all"), 0.5)))
    assert combined(parts).branches == ("forget", "retain_all")


def test_metrics_of_forgetting() -> None:
    _, policy, reference = worked()
    metrics = NPO(0.5)(policy, reference).metrics
    means = {name: (value / count).item() for name, (value, count) in metrics.items()}
    assert means == pytest.approx(
        {
            "logps/forget": -2.25,
            # (2 * 0.4148304099 + 4 * 0.5563943592) / 6: over tokens, not over answers
            "p/forget": 0.5092063761,
            "weight/forget": (0.8756469982 + 1) / 2,
        }
    )
    assert not any(value.requires_grad for pair in metrics.values() for value in pair)
    kto = KTOForget(beta=0.5)(policy, reference).metrics
    assert (kto["kto/z"][0] / kto["kto/z"][1]).item() == pytest.approx(0.125)
