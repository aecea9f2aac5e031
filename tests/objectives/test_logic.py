"""The compiler of formulas against the published rows and order, over all structures of two atoms."""

from __future__ import annotations

import math
import re
from itertools import product
from typing import Any, get_args

import pytest
import torch
from objectives.test_objectives import per_pair, random_pairs, rows, scored, worked
from torch import Tensor

from align.engine.scores import Scores
from align.objectives import DPO, IPO, Logic, SimPO
from align.objectives.closed_form import closed_form, coefficient
from align.objectives.logic import Name, log1mexp, rho
from align.objectives.structures import (
    PRESETS,
    Structure,
    compiled,
    entailed,
    entailing,
    formulas_of,
    nearest,
    two_atom_structures,
)

STRUCTURES = two_atom_structures()
EXACT = {"rtol": 1e-12, "atol": 1e-12}

# exp(rho), drho/da_w and drho/da_l as published (CE to ORPO, unCPO) or derived from the published order; a = log p
ROWS = {
    "CE": ("w / (1 - w)", "1 / (1 - w)", "0"),
    "CEUnl": ("w*(1-l) / (1 - w*(1-l))", "1 / (1 - w*(1-l))", "-l / ((1 - l) * (1 - w*(1-l)))"),
    "CPO": ("w / l", "1", "-1"),
    "ORPO": ("w*(1-l) / (l*(1-w))", "1 / (1 - w)", "-1 / (1 - l)"),
    "unCPO": ("(w*l + 1 - l) / (l*(1-w))", "w*l / (w*l + 1 - l) + w / (1 - w)", "-1 / (w*l + 1 - l)"),
    "cCPO": ("w / (l*(1-w))", "1 / (1 - w)", "-1"),
    "cfUnl": ("(1 - l) / (l*(1-w))", "w / (1 - w)", "-1 / (1 - l)"),
    "fUnl": ("(1 - l) / l", "0", "-1 / (1 - l)"),
    "qfUnl": ("(1 - l) / (1 - w)", "w / (1 - w)", "-l / (1 - l)"),
    "cUNL": ("w*(1-l) / l", "1", "-1 / (1 - l)"),
    "sCE": ("w / (w*l + 1 - w)", "1 / (w*l + 1 - w)", "-w*l / (w*l + 1 - w)"),
    "l20": ("(1 - l) / (1 - w*(1-l))", "w*(1-l) / (1 - w*(1-l))", "-l / (1 - l) - w*l / (1 - w*(1-l))"),
}
# left entails right, next to it
ORDER = {
    "CEUnl": {"l20", "cUNL", "sCE"},
    "l20": {"fUnl", "qfUnl"},
    "cUNL": {"fUnl", "ORPO", "CPO"},
    "sCE": {"CPO", "CE"},
    "CE": {"cCPO"},
    "ORPO": {"cCPO", "cfUnl"},
    "CPO": {"cCPO"},
    "fUnl": {"cfUnl"},
    "qfUnl": {"cfUnl"},
    "cCPO": {"unCPO"},
    "cfUnl": {"unCPO"},
    "unCPO": set(),
}


def grid(*sizes: float) -> list[Tensor]:
    """Log-probs of every combination of the probabilities, one tensor for each of W and L."""
    p = torch.tensor(sizes or (1e-4, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999), dtype=torch.float64)
    return [values.flatten().log().requires_grad_() for values in torch.meshgrid(p, p, indexing="ij")]


def evaluated(text: str, values: dict[str, Tensor]) -> Tensor:
    """A closed form such as ``w (1 - l) / l`` at these values."""
    code = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text)
    return eval(code, {}, values) + torch.zeros_like(values["w"])


def slopes(structure: Structure, a_w: Tensor, a_l: Tensor, **others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rho and its derivatives by the two log-probs."""
    value = rho(structure, {"W": a_w, "L": a_l, **others})
    return value.detach(), *torch.autograd.grad(value.sum(), [a_w, a_l])


# ---- the published rows


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str) -> None:
    a_w, a_l = grid()
    found = slopes(PRESETS[name].structure, a_w, a_l)
    expected = [evaluated(text, {"w": a_w.detach().exp(), "l": a_l.detach().exp()}) for text in ROWS[name]]
    torch.testing.assert_close(found[0], expected[0].log(), **EXACT)
    torch.testing.assert_close(found[1], expected[1], **EXACT)
    torch.testing.assert_close(found[2], expected[2], **EXACT)


def test_rows_with_a_reference() -> None:
    """DPO w r_l / (r_w l), SimPO w m_l / (m_w l), and DPOP, where W and Rw stand twice: w w r_l / (r_w r_w l)."""
    a_w, a_l = grid()
    r_w, r_l = torch.full_like(a_w, math.log(0.35)), torch.full_like(a_l, math.log(0.2))
    dpop = compiled("(L & Rw & Rw2) -> (W & W2 & Rl)", "(L & Rw & Rw2) | (W & W2 & Rl)", "L & Rw & Rw2 & W & W2 & Rl")
    assert dpop.atoms == ("W", "W2", "L", "Rw", "Rw2", "Rl")
    for structure, ratio, slope in (
        (PRESETS["DPO"].structure, a_w - a_l + r_l - r_w, 1.0),
        (PRESETS["SimPO"].structure, a_w - a_l + r_l - r_w, 1.0),
        (dpop, 2 * a_w - a_l + r_l - 2 * r_w, 2.0),
    ):
        value, on_w, on_l = slopes(structure, a_w, a_l, Rw=r_w, Rl=r_l, Mw=r_w, Ml=r_l)
        torch.testing.assert_close(value, ratio.detach(), **EXACT)
        torch.testing.assert_close(on_w, torch.full_like(on_w, slope), **EXACT)
        torch.testing.assert_close(on_l, -torch.ones_like(on_l), **EXACT)


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


def test_names() -> None:
    assert get_args(Name) == tuple(PRESETS)
    assert set(ROWS) == set(ORDER) == {name for name, preset in PRESETS.items() if not preset.version_of}


# ---- the order


def test_the_published_order() -> None:
    for name, weaker in ORDER.items():
        assert set(nearest(entailed(name), entailed)) == weaker, name
        stronger = {other for other, below in ORDER.items() if name in below}
        assert set(nearest(entailing(name), entailing)) == stronger, name
    assert set(entailed("CEUnl")) == set(ORDER) - {"CEUnl"}
    assert set(entailing("unCPO")) == set(ORDER) - {"unCPO"}
    assert entailed("DPO") == entailed("CPO") == entailed("SimPO") == ["unCPO", "cCPO"]


def test_the_order_leaves_one_structure_for_each_inferred_name() -> None:
    """Of all 225, given the published ones and that names entail each other just as drawn."""
    inferred = [name for name in ORDER if PRESETS[name].inferred]
    assert len(inferred) == 7
    below: dict[str, set[str]] = {}
    for name in reversed(ORDER):
        below[name] = set().union(*({other} | below[other] for other in ORDER[name]))

    def fits(name: str, structure: Structure, found: dict[str, Structure]) -> bool:
        return all(
            structure.entails(known) == (other in below[name]) and known.entails(structure) == (name in below[other])
            for other, known in found.items()
        )

    solutions = [{name: PRESETS[name].structure for name in ORDER if name not in inferred}]
    for name in inferred:
        solutions = [found | {name: s} for found in solutions for s in STRUCTURES if fits(name, s, found)]
    assert solutions == [{name: preset.structure for name, preset in PRESETS.items() if not preset.version_of}]


def test_a_structure_of_more_atoms_can_be_compared() -> None:
    wider = compiled("W & Rw", "W | L", "false")  # asks for Rw too, and lets fewer rows off
    assert wider.entails(PRESETS["cCPO"].structure)
    assert not PRESETS["cCPO"].structure.entails(wider)
    assert PRESETS["CPO"].structure.over(("W", "L", "Rl")).entails(PRESETS["CPO"].structure)


def test_loss_falls_along_the_whole_order() -> None:
    """All pairs of the 225 structures, at random probabilities: what entails has the larger loss."""
    generator = torch.Generator().manual_seed(0)
    p = {atom: 0.02 + 0.96 * torch.rand(64, generator=generator, dtype=torch.float64) for atom in ("W", "L")}
    log_p = {atom: values.log() for atom, values in p.items()}
    ratios = torch.stack([rho(structure, log_p) for structure in STRUCTURES])
    losses = -torch.nn.functional.logsigmoid(ratios)
    entails = torch.tensor([[one.entails(other) for other in STRUCTURES] for one in STRUCTURES])
    assert entails.sum() == 65 * 65  # pairs of nonempty sets of which the first lies within the second, for either side
    gaps = losses[:, None] - losses[None]  # [one, other, point]
    assert gaps[entails & ~torch.eye(225, dtype=torch.bool)].min() > 0  # at every point, since no weight is 0
    assert (ratios[torch.tensor([s.top == s.bottom for s in STRUCTURES])] == 0).all()


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


# ---- all structures of two atoms


def test_gradients_of_all_structures() -> None:
    assert len({(s.top, s.bottom) for s in STRUCTURES}) == 225
    points = [torch.tensor(p, dtype=torch.float64).log().requires_grad_() for p in ([0.2], [0.6])]
    for structure in STRUCTURES:

        def loss(a_w: Tensor, a_l: Tensor, structure: Structure = structure) -> Tensor:
            return -torch.nn.functional.logsigmoid(rho(structure, {"W": a_w, "L": a_l}))

        assert torch.autograd.gradcheck(loss, points)


def test_weights_are_counted_row_by_row() -> None:
    """Against the definition: the sum over rows of the product of p and 1 - p."""
    chosen, rejected = {True: 0.3, False: 0.7}, {True: 0.85, False: 0.15}
    weight = {(x, y): chosen[x] * rejected[y] for x, y in product((True, False), repeat=2)}
    log_p = {k: torch.tensor([p[True]], dtype=torch.float64).log() for k, p in (("W", chosen), ("L", rejected))}
    for structure in STRUCTURES:
        expected = sum(weight[row] for row in structure.top) / sum(weight[row] for row in structure.bottom)
        assert rho(structure, log_p).exp().item() == pytest.approx(expected, rel=1e-13, abs=0)


def test_closed_forms_of_all_structures() -> None:
    a_w, a_l = grid(0.05, 0.4, 0.8)
    p = {"w": a_w.detach().exp(), "l": a_l.detach().exp()}
    p |= {"r_w": torch.full_like(p["w"], 0.3), "r_l": torch.full_like(p["w"], 0.6)}
    for structure in STRUCTURES:
        value, on_w, on_l = slopes(structure, a_w, a_l)
        torch.testing.assert_close(evaluated(closed_form(structure), p), value.exp(), **EXACT)
        torch.testing.assert_close(evaluated(closed_form(structure, reference=True), p), 2 * value.exp(), **EXACT)
        torch.testing.assert_close(evaluated(coefficient(structure, "W"), p), on_w, **EXACT)
        torch.testing.assert_close(evaluated(coefficient(structure, "L"), p), on_l, **EXACT)


def test_closed_forms_as_people_write_them() -> None:
    written = {name: closed_form(preset.structure) for name, preset in PRESETS.items()}
    assert written == {
        "CPO": "w / l",
        "ORPO": "w (1 - l) / (l (1 - w))",
        "DPO": "w r_l / (l r_w)",
        "SimPO": "w m_l / (l m_w)",
        "CE": "w / (1 - w)",
        "CEUnl": "w (1 - l) / (1 - w (1 - l))",
        "unCPO": "(1 - l (1 - w)) / (l (1 - w))",
        "cCPO": "w / (l (1 - w))",
        "cfUnl": "(1 - l) / (l (1 - w))",
        "fUnl": "(1 - l) / l",
        "qfUnl": "(1 - l) / (1 - w)",
        "cUNL": "w (1 - l) / l",
        "sCE": "w / (1 - w (1 - l))",
        "l20": "(1 - l) / (1 - w (1 - l))",
    }
    assert coefficient(PRESETS["unCPO"].structure, "W") == "w l / (1 - l (1 - w)) + w / (1 - w)"
    assert coefficient(PRESETS["fUnl"].structure, "W") == "0"
    assert coefficient(PRESETS["CPO"].structure, "L") == "-1"
    assert closed_form(PRESETS["cCPO"].structure, reference=True) == "w r_l / (r_w l (1 - w))"
    assert closed_form(compiled("W & W2", "true", "false")) == "w w2 / (1 - w w2)"


def test_every_structure_can_be_written_as_formulas() -> None:
    for structure in STRUCTURES:
        if structure.top != structure.bottom:
            again = compiled(**formulas_of(structure))
            assert (again.top, again.bottom) == (structure.top, structure.bottom)


# ---- the objective


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
    log1mexp(certain).sum().backward()
    assert log1mexp(certain).detach() == pytest.approx([math.log(1e-6)] * 3, rel=1e-6, abs=0)
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
        "column 3 of 'L >': expected an operator or the end, got '>'.",
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
