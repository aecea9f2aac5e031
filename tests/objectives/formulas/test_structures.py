"""The compiler of formulas against the published rows and order, over all structures of two atoms."""

from __future__ import annotations

import math
import re
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from align.objectives.formulas.closed_form import closed_form, coefficient
from align.objectives.formulas.structures import (
    PRESETS,
    Structure,
    compiled,
    entailed,
    entailing,
    formulas_of,
    nearest,
    two_atom_structures,
)
from align.objectives.logic import Name, rho

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
