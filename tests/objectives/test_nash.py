"""INPO: what it must equal, and where its rounds go on bandits that are small enough to be solved exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from objectives.test_objectives import per_pair, random_pairs
from torch import Tensor

from align.engine.scores import Scores
from align.objectives import DPO, INPO, IPO, Objective, SimPO, WeightedSum
from align.recipe.objective import parse_objective

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
ETA, TAU = 0.3, 0.1
F64 = torch.float64


def table(above: list[list[float]]) -> Tensor:
    """P(row beats column) from what stands above the diagonal."""
    n = len(above) + 1
    P = torch.full((n, n), 0.5, dtype=F64)
    for i, row in enumerate(above):
        for j, p in enumerate(row, start=i + 1):
            P[i, j], P[j, i] = p, 1 - p
    return P


# the first beats the second, the second the third, the third the first, and none as clearly as another
THREE = (table([[0.8, 0.1], [0.7]]), torch.tensor([0.6, 0.3, 0.1], dtype=F64).log())
# 0 > 1 > 3 > 4 > 2 > 0
FIVE = (
    table([[0.65, 0.45, 0.85, 0.6], [0.4, 0.55, 0.35], [0.6, 0.45], [0.75]]),
    torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=F64).log(),
)


def arms(logp: Tensor, **anchors: Tensor) -> Scores:
    """Every ordered pair of arms as chosen and rejected, each an answer of one token."""
    n = len(logp)
    order = [i for i in range(n) for _ in range(n)], [j for _ in range(n) for j in range(n)]
    scores = Scores.from_rows(chosen=[logp[i : i + 1] for i in order[0]], rejected=[logp[j : j + 1] for j in order[1]])
    both = torch.tensor([*order[0], *order[1]])
    return replace(scores, anchors={name: values[both] for name, values in anchors.items()})


def population_loss(objective: Objective, policy: Scores, reference: Scores | None, P: Tensor, drawn: Tensor) -> Tensor:
    """The expected loss of pairs of independent draws, labelled by the preference."""
    weights = (drawn.exp()[:, None] * drawn.exp()[None] * P).flatten()
    return (weights * objective(policy, reference).losses[0].losses).sum()


def kl(a: Tensor, b: Tensor) -> float:
    return (a.exp() * (a - b)).sum().item()


def nash(P: Tensor, initial: Tensor, tau: float) -> Tensor:
    """Log-probs of the policy that is the best answer to itself when leaving the initial one costs tau times the KL.

    Newton's method on that condition, from a large tau down; it knows nothing of INPO.
    """

    def gap(theta: Tensor, t: float) -> Tensor:
        return theta - (initial + P @ theta.softmax(0) / t).log_softmax(0)

    theta, t = initial.clone(), 10.0
    while True:
        t = max(tau, 0.8 * t)
        for _ in range(50):
            jacobian = torch.autograd.functional.jacobian(lambda x, t=t: gap(x, t), theta)
            step = torch.linalg.solve(jacobian, -gap(theta, t))
            size = 1.0
            while gap(theta + size * step, t).norm() > gap(theta, t).norm() * (1 - 1e-4 * size) and size > 1e-8:
                size /= 2
            theta = theta + size * step
        if t == tau:
            assert gap(theta, tau).abs().max() < 1e-12
            return theta.log_softmax(0)


def inpo_round(P: Tensor, initial: Tensor, previous: Tensor, eta: float, tau: float) -> Tensor:
    """The minimiser of INPO's population loss (see ``test_the_minimiser_...``)."""
    return (P @ previous.exp() / eta + tau / eta * initial + (1 - tau / eta) * previous).log_softmax(0)


def dpo_round(P: Tensor, reference: Tensor, previous: Tensor, beta: float) -> Tensor:
    """The minimiser of DPO's population loss on pairs drawn from ``previous``: where every arm's share of the gradient
    is 0, E_j[P_ij - sigmoid(beta (x_i - x_j))] = 0 for the log-ratios x.
    """

    def pull(x: Tensor) -> Tensor:
        return ((P - torch.sigmoid(beta * (x[:, None] - x[None]))) * previous.exp()[None]).sum(1)

    x = torch.zeros_like(previous)
    for _ in range(500):
        if pull(x).abs().max() < 1e-13:
            break
        step = torch.linalg.lstsq(torch.autograd.functional.jacobian(pull, x), -pull(x)[:, None], driver="gelsd")
        size = 1.0
        while pull(x + size * step[0][:, 0]).norm() > pull(x).norm() * (1 - 1e-4 * size) and size > 1e-8:
            size /= 2
        x = x + size * step[0][:, 0]
        x = x - x.mean()
    assert pull(x).abs().max() < 1e-12
    return (reference + x).log_softmax(0)


def distances(start: Tensor, target: Tensor, step: Callable[[Tensor], Tensor], rounds: int = 30) -> list[float]:
    """KL of the target to the policy after each round, the start included."""
    out, policy = [kl(target, start)], start
    for _ in range(rounds):
        policy = step(policy)
        out.append(kl(target, policy))
    return out


# ---- identities


def with_anchors(policy: Scores, **models: Scores) -> Scores:
    anchors = {}
    for name, scores in models.items():
        anchors[name] = torch.zeros(len(policy.lengths))
        for branch in ("chosen", "rejected"):
            anchors[name][policy.sequences[branch]] = scores.sum(branch)
    return replace(policy, anchors=anchors)


def test_in_the_first_round_inpo_is_ipo_with_tau_equal_to_eta() -> None:
    logp = [torch.linspace(-3, -0.1, 5, dtype=F64) * (1 + i) for i in range(6)]
    leaves = [row.requires_grad_() for row in logp]
    held = [row.detach() * 0.7 - 0.2 for row in logp]
    reference = Scores.from_rows(chosen=held[:3], rejected=held[3:])
    sums = torch.stack([row.sum() for row in held])
    for ratio in (0.0, 1 / 3, 0.8, 1.0):
        gradients = []
        for objective in (INPO(0.2, ratio), IPO(0.2, "sum")):
            policy = Scores.from_rows(chosen=leaves[:3], rejected=leaves[3:])
            policy = replace(policy, anchors={"initial": sums, "previous": sums})
            terms = objective(policy, reference)
            gradients.append((terms, torch.autograd.grad(terms.losses[0].losses.sum(), leaves)))
        (ours, mine), (ipo, theirs) = gradients
        assert torch.allclose(ours.losses[0].losses, ipo.losses[0].losses, rtol=1e-12)
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(mine, theirs, strict=True))
        for name, (value, count) in ipo.metrics.items():
            assert torch.allclose(ours.metrics[name][0], value, rtol=1e-12), name
            assert torch.equal(ours.metrics[name][1], count)


def test_at_the_start_the_loss_is_the_target_squared() -> None:
    policy, _ = random_pairs(0)
    policy = with_anchors(policy, initial=policy, previous=policy)
    assert torch.allclose(per_pair(INPO(), policy, None), torch.tensor(1e4), rtol=1e-5)
    assert INPO().eta == 0.005
    assert INPO().tau_ratio == 1 / 3


def test_only_the_anchors_that_count_are_read() -> None:
    policy, initial = random_pairs(1)
    previous, _ = random_pairs(2)
    both = with_anchors(policy, initial=initial, previous=previous)
    for ratio, name in ((1.0, "initial"), (0.0, "previous")):
        inpo = INPO(0.1, ratio)
        assert inpo.anchors == (name,)
        alone = with_anchors(policy, **{name: {"initial": initial, "previous": previous}[name]})
        assert torch.equal(per_pair(inpo, both, None), per_pair(inpo, alone, None))
        ipo = per_pair(IPO(0.1, "sum"), policy, {"initial": initial, "previous": previous}[name])
        assert torch.allclose(per_pair(inpo, both, None), ipo, rtol=1e-4)
    assert INPO().anchors == ("initial", "previous")
    assert not INPO().needs_reference
    assert WeightedSum(((SimPO(), 1.0), (INPO(), 0.5))).anchors == ("initial", "previous")
    assert DPO().anchors == ()
    # a row without its anchor makes the loss nan, and never a loss without the anchor
    assert per_pair(INPO(), with_anchors(policy, initial=initial), None).isnan().all()


def test_swapping_the_labels_flips_h_and_constants_do_not_count() -> None:
    policy, initial = random_pairs(3)
    previous, _ = random_pairs(4)
    scores = with_anchors(policy, initial=initial, previous=previous)
    turned = {"chosen": scores.sequences["rejected"], "rejected": scores.sequences["chosen"]}
    inpo = INPO(0.25, 0.4)
    h, flipped = (inpo(s, None).metrics["inpo/h"][0].item() for s in (scores, replace(scores, sequences=turned)))
    assert h == pytest.approx(-flipped)
    assert abs(h) > 1
    moved = {"initial": scores.anchors["initial"] + 3, "previous": scores.anchors["previous"] - 5}
    shifted = replace(scores, anchors=moved)
    assert torch.allclose(per_pair(inpo, shifted, None), per_pair(inpo, scores, None), rtol=1e-4)


def test_a_ratio_may_be_written_as_one() -> None:
    for text, value in (("1/3", 1 / 3), ("0.5", 0.5), (" 1 / 4 ", 0.25), (0.25, 0.25), (1, 1.0)):
        (part,), problems = parse_objective({"name": "inpo", "tau_ratio": text})
        assert not problems
        assert part.value == INPO(tau_ratio=value)
    for text in ("1/0", "a/b", "1/3/4", "__import__('os')", "", "1/nan"):
        _, (problem,) = parse_objective({"name": "inpo", "tau_ratio": text})
        assert problem.path == ("objective", "tau_ratio")
    assert parse_objective({"name": "inpo", "tau_ratio": "1/0"})[1][0].text == (
        "expected a number or a ratio such as 1/3, got the text '1/0'."
    )
    assert parse_objective({"name": "inpo", "tau_ratio": "3/2"})[1][0].text.startswith("must be at most 1")


# ---- bandits


@pytest.mark.parametrize("bandit", [THREE, FIVE])
def test_the_minimiser_of_the_population_loss_is_the_closed_form(bandit: tuple[Tensor, Tensor]) -> None:
    """Gradient of our loss at it 0, and Newton's step from elsewhere ends there (the loss is a square)."""
    P, initial = bandit
    previous = (0.7 * initial + torch.linspace(0, 1, len(initial), dtype=F64)).log_softmax(0)
    for eta, ratio in ((ETA, TAU / ETA), (0.05, 0.9), (1.0, 0.0)):
        objective = INPO(eta, ratio)

        def loss(theta: Tensor, objective: INPO = objective) -> Tensor:
            policy = arms(theta.log_softmax(0), initial=initial, previous=previous)
            return population_loss(objective, policy, None, P, previous)

        expected = inpo_round(P, initial, previous, eta, ratio * eta)
        assert torch.autograd.functional.jacobian(loss, expected).abs().max() < 1e-12
        gradient = torch.autograd.functional.jacobian(loss, previous)
        assert gradient.abs().max() > 1e-3
        hessian = torch.autograd.functional.hessian(loss, previous)
        found = previous + torch.linalg.lstsq(hessian, -gradient[:, None], driver="gelsd")[0][:, 0]
        assert torch.allclose(found.log_softmax(0), expected, atol=1e-9)


@pytest.mark.parametrize("bandit", [THREE, FIVE])
def test_the_regularised_nash_policy_is_beaten_by_none(bandit: tuple[Tensor, Tensor]) -> None:
    P, initial = bandit
    star = nash(P, initial, TAU)
    assert torch.allclose(star, (initial + P @ star.exp() / TAU).log_softmax(0), atol=1e-12)

    def gain(other: Tensor) -> float:
        return (other.exp() @ P @ star.exp()).item() - TAU * kl(other, initial)

    for seed in range(200):
        noise = torch.randn(len(star), generator=torch.Generator().manual_seed(seed), dtype=F64)
        assert gain((star + noise).log_softmax(0)) < gain(star)
    # no order of the arms explains the preference
    beats = P > 0.5
    assert not any(beats[i].sum() == len(P) - 1 for i in range(len(P)))


def dpo(P: Tensor, initial: Tensor, beta: float, reference: str) -> Callable[[Tensor], Tensor]:
    return lambda policy: dpo_round(P, initial if reference == "initial" else policy, policy, beta)


@pytest.mark.parametrize("bandit", [THREE, FIVE])
def test_rounds_of_inpo_go_to_the_nash_policy_and_those_of_dpo_do_not(bandit: tuple[Tensor, Tensor]) -> None:
    P, initial = bandit
    star = nash(P, initial, TAU)
    inpo = distances(initial, star, lambda policy: inpo_round(P, initial, policy, ETA, TAU))
    assert all(later < earlier for earlier, later in itertools.pairwise(inpo))
    assert inpo[-1] < 1e-4 < inpo[0] / 1000
    for beta in (0.1, 4 * ETA):
        for reference in ("previous", "initial"):
            iterated = distances(initial, star, dpo(P, initial, beta, reference))
            assert iterated[-1] > 100 * inpo[-1], (beta, reference)
            assert min(iterated[5:]) > inpo[-1]
    # a minimiser of our DPO's own population loss
    one = dpo_round(P, initial, initial, 0.1)
    gradient = torch.autograd.functional.jacobian(
        lambda theta: population_loss(DPO(0.1), arms(theta.log_softmax(0)), arms(initial), P, initial), one
    )
    assert gradient.abs().max() < 1e-12


def test_the_table_in_the_docs_is_what_is_measured() -> None:
    P, initial = THREE
    small = 0.005
    star, sharp = nash(P, initial, TAU), nash(P, initial, small / 3)
    runs = {
        "`inpo`, eta 0.3, tau 0.1": (star, lambda p: inpo_round(P, initial, p, ETA, TAU)),
        "iterated `dpo`, beta 0.1, `reference: previous`": (star, dpo(P, initial, 0.1, "previous")),
        "iterated `dpo`, beta 1.2, `reference: previous`": (star, dpo(P, initial, 4 * ETA, "previous")),
        "iterated `dpo`, beta 1.2, `reference: initial`": (star, dpo(P, initial, 4 * ETA, "initial")),
        "`inpo`, eta 0.005, tau eta / 3, to its own Nash policy": (
            sharp,
            lambda p: inpo_round(P, initial, p, small, small / 3),
        ),
    }
    for name, (target, step) in runs.items():
        found = distances(initial, target, step)
        line = f"| {name} | " + " | ".join(f"{found[i]:.2g}" for i in (0, 1, 2, 5, 10, 30)) + " |"
        assert line in PAGE, f"docs/methods.md should say: {line}"
