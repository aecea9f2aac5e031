"""Sums of objectives: what they ask for, and what they are; and objectives as recipes write them."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from objectives.cases import CASES, Case
from objectives.test_objectives import per_pair, random_pairs

from align.engine.reads import KLToReference, LogProb
from align.objectives import DPO, KL, NLL, RPO, SimPO, WeightedSum
from align.recipe.objective import parse_objective


def test_a_weighted_sum_asks_for_what_its_parts_ask_for() -> None:
    both = WeightedSum(((SimPO(), 1.0), (KL(branch="retain", norm="token_mean"), 0.5), (NLL(norm="seq_mean"), 0.1)))
    assert both.branches == ("chosen", "rejected", "retain")
    assert both.units == ("examples", "tokens:retain", "sequences:chosen")
    assert both.needs_reference
    assert both.reads() == (LogProb(), KLToReference("forward"))
    assert not WeightedSum(((SimPO(), 1.0), (NLL(), 1.0))).needs_reference


def test_dpo_plus_the_likelihood_term_is_rpo() -> None:
    policy, reference = random_pairs(6)
    for preset, norm, weight in (("openrlhf", "seq_mean", 0.2), ("handbook", "sum", 0.005 * 0.5)):
        rpo = RPO(preset, beta=0.5)
        parts = WeightedSum(((DPO(0.5), 1.0), (NLL(norm=norm), weight)))
        assert torch.equal(per_pair(rpo, policy, reference), per_pair(parts, policy, reference))


def test_weights_multiply_and_metrics_of_the_first_part_stay() -> None:
    policy, reference = random_pairs(7)
    inner = WeightedSum(((DPO(0.5), 2.0), (DPO(0.1), 3.0)))
    outer = WeightedSum(((inner, 0.5),))
    expected = per_pair(DPO(0.5), policy, reference) + 1.5 * per_pair(DPO(0.1), policy, reference)
    assert torch.allclose(per_pair(outer, policy, reference), expected, rtol=1e-6)
    margin = outer(policy, reference).metrics["rewards/margins"][0]
    assert torch.equal(margin, DPO(0.5)(policy, reference).metrics["rewards/margins"][0])


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases])
def test_a_recipe_with_every_field_written_out_is_the_objective(name: str, case: Case) -> None:
    (part,), problems = parse_objective({"name": name, **asdict(case.objective)})
    assert not problems
    assert part.value == case.objective
    assert parse_objective(part.dump())[0] == (part,)
