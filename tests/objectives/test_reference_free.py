"""Losses without a reference: cpo, simpo and dco, and the logarithm that orpo and dco take."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from objectives.test_objectives import per_pair, random_pairs, scored, summed
from objectives.test_pairwise import rows_of

from align.objectives import (
    CPO,
    DCO,
    NLL,
    Hinge,
    SimPO,
)
from align.objectives.stable import log1mexp


def test_cpo_and_simpo_and_hinge_meet_where_they_should() -> None:
    policy, _ = random_pairs(18)
    even = {name: torch.full((len(policy.sequences[name]),), 4) for name in policy.sequences}
    same = scored({name: [row[:1].expand(4) for row in rows_of(policy, name)] for name in even})
    simpo, cpo = SimPO(beta=2.0, gamma=0.0), CPO(beta=0.5, cpo_alpha=0.0)
    assert torch.allclose(per_pair(simpo, same, None), per_pair(cpo, same, None), rtol=1e-6)
    zero = scored({name: [row * 0 for row in rows_of(same, name)] for name in even})
    hinge = CPO("hinge", beta=0.5, cpo_alpha=0.0)
    assert torch.allclose(per_pair(hinge, same, None), per_pair(Hinge(0.5), same, zero), rtol=1e-6)
    assert torch.allclose(per_pair(SimPO(alpha=1e-9), same, None), per_pair(SimPO(), same, None), rtol=1e-6)


@pytest.mark.parametrize("form", ["hinge", "ipo"])
def test_forms_of_cpo_without_label_smoothing_refuse_it(form: Any) -> None:
    sentence = f"form {form} has no label smoothing. Remove label_smoothing, or use form: sigmoid."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        CPO(form, label_smoothing=0.1)


@pytest.mark.parametrize(("p", "printed"), [(0.01, 0.21), (0.3, 2e-38)])
def test_the_factor_of_dco(p: float, printed: float) -> None:
    logp = torch.tensor([math.log(p)], dtype=torch.float64, requires_grad=True)
    terms = DCO(n=256)(scored({"chosen": [logp]}), None)
    terms.losses[0].losses.sum().backward()
    closed = 256 * p * (1 - p) ** 255 / (1 - (1 - p) ** 256)
    assert -logp.grad.item() == pytest.approx(closed, rel=1e-9, abs=0)
    assert closed == pytest.approx(printed, rel=0.25, abs=0)
    assert terms.metrics["dco/factor/chosen"][0].item() == pytest.approx(closed, rel=1e-9, abs=0)
    assert terms.losses[0].losses.item() == pytest.approx(-math.log(1 - (1 - p) ** 256), rel=1e-9, abs=1e-15)


def test_dco_with_one_try_is_likelihood() -> None:
    policy = scored({"chosen": summed(-1e-3, -0.5, -3.0, -19.0, -21.0, -300.0)})
    assert torch.allclose(per_pair(DCO(n=1.0), policy, None), per_pair(NLL(norm="sum"), policy, None), rtol=1e-7)
    assert DCO(n=1.0).units == NLL(norm="sum").units


def test_dco_of_long_answers_is_likelihood_less_the_log_of_n() -> None:
    for dtype in (torch.float32, torch.float64):
        policy = scored({"chosen": summed(-22.0, -24.0, -25.5, -100.0, dtype=dtype)})
        losses = per_pair(DCO(n=64.0), policy, None)
        # the two forms meet at log(n p) = -20
        assert losses.tolist() == pytest.approx([x - math.log(64) for x in (22.0, 24.0, 25.5, 100.0)], rel=1e-6, abs=0)


def test_the_log_of_what_does_not_happen() -> None:
    x = torch.tensor([-1e-8, -1e-3, -0.69, -0.70, -5.0, -200.0], dtype=torch.float64)
    expected = [math.log(-math.expm1(v)) if v > -0.7 else math.log1p(-math.exp(v)) for v in x.tolist()]
    assert log1mexp(x).tolist() == pytest.approx(expected, rel=1e-12, abs=0)
    ends = torch.tensor([0.0, -1e-12, -1e4], requires_grad=True)
    values = log1mexp(ends)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(ends.grad).all()


def test_dco_between_its_two_forms_is_the_closed_one() -> None:
    values = [-18.0, -12.0, -8.0, -5.0]
    losses = per_pair(DCO(n=64.0), scored({"chosen": summed(*values)}), None)
    closed = [-math.log(-math.expm1(64 * math.log1p(-math.exp(x)))) for x in values]
    assert losses.tolist() == pytest.approx(closed, rel=1e-9, abs=0)
