"""The objective ``logic``: what it equals, what it needs, what it logs and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objectives.formulas.test_structures import EXACT, ORDER, ROWS
from objectives.test_objectives import per_pair, random_pairs, rows, scored, worked

from align.engine.scores import Scores
from align.objectives import DPO, IPO, Logic, SimPO
from align.objectives.formulas.structures import PRESETS
from align.objectives.logic import NEAREST_TO_CERTAIN
from align.objectives.stable import log1mexp


def test_known_losses() -> None:
    policy, reference = random_pairs(0)
    same = {"rtol": 1e-6, "atol": 1e-6}
    for logic, other in (
        (Logic(preset="DPO", beta=0.1, probability="sequence"), DPO(beta=0.1)),
        (Logic(preset="CPO", beta=0.1, probability="sequence", reference=True), DPO(beta=0.1)),
        (Logic(preset="DPO", link="squared", beta=0.25), IPO(tau=0.25)),
        (Logic(preset="SimPO", beta=2.0, gamma=0.7), SimPO(beta=2.0, gamma=0.7)),
    ):
        torch.testing.assert_close(per_pair(logic, policy, reference), per_pair(other, policy, reference), **same)
        ours, theirs = logic(policy, reference).metrics, other(policy, reference).metrics
        assert ours.keys() == theirs.keys()
        for key in theirs if logic.link == "logistic" else ("rewards/accuracies",):
            torch.testing.assert_close(ours[key], theirs[key], **same)


def test_dpop_where_the_chosen_answer_fell() -> None:
    """Smaug's loss, -log sigmoid(beta (d_w - d_l - lambda max(0, -d_w))), lambda = 1, is that row where d_w < 0."""
    policy, reference = random_pairs(3)
    logic = Logic(
        formula="(L & Rw & Rw2) -> (W & W2 & Rl)",
        condition="(L & Rw & Rw2) | (W & W2 & Rl)",
        additive="L & Rw & Rw2 & W & W2 & Rl",
        beta=0.3,
        probability="sequence",
    )
    d_w, d_l = (policy.sum(branch) - reference.sum(branch) for branch in ("chosen", "rejected"))
    dpop = -torch.nn.functional.logsigmoid(0.3 * (d_w - d_l - (-d_w).clamp(min=0)))
    fell = d_w < 0
    assert 0 < fell.sum() < len(fell)
    torch.testing.assert_close(per_pair(logic, policy, reference)[fell], dpop[fell], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("link", ["logistic", "squared", "hinge"])
def test_other_links_and_the_reference_keep_the_order(link: str) -> None:
    policy, reference = random_pairs(7)
    for name, weaker in ORDER.items():
        for other in weaker:
            beta = 0.01 if link == "squared" else 30.0  # before the target, where squared falls too
            strong, weak = (
                per_pair(Logic(preset=n, link=link, beta=beta, reference=True), policy, reference)
                for n in (name, other)
            )
            assert (strong - weak).min() >= -1e-5 * strong.abs().max()
            assert (strong - weak).max() > 0


@pytest.mark.parametrize("name", ROWS)
def test_reference_true_is_the_formula_shifted(name: str) -> None:
    """rho + log r_l - log r_w, both by token and of whole answers; hinge far from its end shows rho itself."""
    _, policy, reference = worked()
    for probability in ("per_token", "sequence"):
        plain, referenced = (
            per_pair(
                Logic(preset=name, link="hinge", beta=50.0, reference=on, probability=probability), policy, reference
            )
            for on in (False, True)
        )
        r = {b: reference.mean(b) if probability == "per_token" else reference.sum(b) for b in ("chosen", "rejected")}
        torch.testing.assert_close(plain - referenced, r["rejected"] - r["chosen"], **EXACT)


def test_what_is_needed_follows_from_formula_and_field() -> None:
    assert [name for name in PRESETS if Logic(preset=name).needs_reference] == ["DPO"]
    assert Logic(preset="cCPO", reference=True).needs_reference
    assert Logic(formula="W | Rl2").needs_reference
    assert not Logic(formula="W | Ml").needs_reference
    assert Logic() == Logic(preset=None)
    assert Logic().structure == PRESETS["CPO"].structure


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({"preset": "cCPO"}, False),
        ({"preset": "cCPO", "reference": True}, True),
        ({"preset": "cCPO", "reference": True, "probability": "sequence"}, False),
        ({"preset": "DPO"}, True),
    ],
)
def test_accuracy_compares_log_ratios(fields: dict[str, Any], own: bool) -> None:
    """d_w = (3, 1) over 6 and 1 tokens, d_l = (1, 2) over 1 and 4: by token the order of both pairs turns."""
    flat = torch.full
    policy = scored({"chosen": [flat((6,), -1.0), flat((1,), -1.0)], "rejected": [flat((1,), -1.0), flat((4,), -1.0)]})
    reference = scored(
        {"chosen": [flat((6,), -1.5), flat((1,), -2.0)], "rejected": [flat((1,), -2.0), flat((4,), -1.5)]}
    )
    logic = Logic(**fields, beta=2.0)
    assert logic.own_scales is own
    metrics = logic(policy, reference if logic.needs_reference else None).metrics
    shares = {key: (value / count).item() for key, (value, count) in metrics.items() if "accur" in key}
    if not logic.needs_reference:
        assert shares == {"rewards/accuracies": 0.5}  # all by token alike: two ties
        assert (metrics["rewards/chosen"][0] / 2).item() == -2.0
    elif own:
        assert shares == {"rewards/accuracies": 0.5, "rewards/own_accuracies": 0.5}
        assert (metrics["rewards/chosen"][0] / 2).item() == pytest.approx(2 * (0.5 + 1) / 2)
    else:
        assert shares == {"rewards/accuracies": 0.5}
        assert (metrics["rewards/chosen"][0] / 2).item() == pytest.approx(2 * (3 + 1) / 2)


def test_of_whole_answers_the_negated_atoms_vanish() -> None:
    """1 - p is 1 for an answer of a hundred tokens: ORPO and cCPO are CPO then, and unCPO only pushes l down."""
    long = {"chosen": [torch.full((100,), -0.8)], "rejected": [torch.full((120,), -0.9)]}

    def losses(name: str, probability: str) -> float:
        return per_pair(Logic(preset=name, beta=0.1, probability=probability), scored(long), None).item()

    cpo = losses("CPO", "sequence")
    assert losses("ORPO", "sequence") == losses("cCPO", "sequence") == cpo
    leaves = {name: [row.clone().requires_grad_() for row in branch] for name, branch in long.items()}
    per_pair(Logic(preset="unCPO", beta=0.1, probability="sequence"), scored(leaves), None).sum().backward()
    assert leaves["chosen"][0].grad.abs().max() < 1e-30
    assert leaves["rejected"][0].grad.min() > 1e-6
    by_token = {name: losses(name, "per_token") for name in ("CPO", "ORPO", "cCPO")}
    assert len(set(by_token.values())) == 3


def test_log_of_one_minus_p() -> None:
    a = torch.tensor([-1e-3, -0.5, math.log(0.5), -1.0, -30.0, -700.0], dtype=torch.float64, requires_grad=True)
    value = log1mexp(a)
    expected = [math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x)) for x in a.tolist()]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
    value.sum().backward()
    slope = [-1 / math.expm1(-x) for x in a.tolist()]  # -p / (1 - p)
    torch.testing.assert_close(a.grad, torch.tensor(slope, dtype=torch.float64), rtol=1e-12, atol=0)
    certain = torch.tensor([0.0, -1e-9, 1e-7], requires_grad=True)
    log1mexp(certain, NEAREST_TO_CERTAIN).sum().backward()
    assert log1mexp(certain, NEAREST_TO_CERTAIN).detach() == pytest.approx([math.log(1e-6)] * 3, rel=1e-6, abs=0)
    assert certain.grad.tolist() == [0.0, 0.0, 0.0]


def test_a_certain_answer_still_has_its_own_pull() -> None:
    """CPO has no 1 - p in it, so a log-prob of 0 pulls as any other."""
    leaves = {
        "chosen": [torch.tensor([0.0], requires_grad=True)],
        "rejected": [torch.tensor([0.0], requires_grad=True)],
    }
    per_pair(Logic(beta=2.0), scored(leaves), None).sum().backward()
    assert [leaves[name][0].grad.item() for name in ("chosen", "rejected")] == [-1.0, 1.0]


# ---- what is refused

REFUSED = {
    "both": ({"preset": "CPO", "formula": "W"}, "give a preset or a formula, not both."),
    "condition of a preset": (
        {"preset": "CPO", "condition": "W"},
        "condition and additive belong to a formula; a preset has its own. Add formula.",
    ),
    "empty top": (
        {"formula": "W & ~W", "condition": "W | L"},
        "the top is empty: no row of the truth table makes (formula or additive) and condition true, so there is "
        "nothing to compare. Weaken the condition or change the formula.",
    ),
    "empty bottom": (
        {"formula": "W | L", "condition": "W | L"},
        "the bottom is empty: no row of the truth table makes (not formula or additive) and condition true, so there "
        "is nothing to compare. Weaken the condition or change the formula.",
    ),
    "constant": (
        {"formula": "W", "additive": "true"},
        "top and bottom are the same rows, so the loss is constant and nothing would be learned.",
    ),
    "no answer of the policy": (
        {"formula": "Rw -> Rl"},
        "the formula names neither W nor L, so there is no answer of the policy to train on.",
    ),
    "too many atoms": (
        {"formula": "W & W2 & W3 & W4 & W5 & W6 & W7 & W8"},
        "the formulas name 9 atoms with W and L; at most 8 are compiled.",
    ),
    "reference twice": (
        {"preset": "DPO", "reference": True},
        "the formula names the reference itself (Rw, Rl); remove reference: true.",
    ),
    "gamma for nothing": (
        {"preset": "DPO", "gamma": 0.5},
        "gamma has no effect here: the formula names neither Mw nor Ml, as that of SimPO does.",
    ),
    "formula that cannot be read": (
        {"formula": "L >"},
        "column 3 of 'L >': expected an operator (& | ^ -> <->) or the end, got '>'.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    fields, sentence = REFUSED[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Logic(**fields)
    assert str(caught.value) == sentence


def test_scores_in_float32_stay_finite_where_answers_are_certain() -> None:
    policy = Scores.from_rows(**rows({"chosen": [[0.0], [-1e-8]], "rejected": [[-1e-8], [-200.0]]}, torch.float32))
    for name in PRESETS:
        reference = policy if Logic(preset=name).needs_reference else None
        assert torch.isfinite(per_pair(Logic(preset=name), policy, reference)).all(), name
