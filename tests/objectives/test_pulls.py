"""The texts ``margin`` and ``pulls`` of every objective are evaluated and compared with its gradient."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from objectives.cases import CASES
from torch import Tensor

from align.engine.scores import Scores
from align.objectives import OBJECTIVES, RPO, Objective

ROWS = 5
INDEX = {"chosen": "w", "rejected": "l", "alternate": "a", "forget": "f", "retain": "r"}
BRANCHES = (*INDEX, "chosen_all", "retain_all", "sample", "survivor")
KNOWN = {"mean": torch.mean, "sigmoid": torch.sigmoid, "log": torch.log, "exp": torch.exp, "abs": torch.abs}


def bare(objective: Objective) -> Objective:
    """Without the options that losses of a kind share, which ``pulls`` leaves out; they alone are ``kw_only``."""
    return replace(objective, **{field.name: field.default for field in fields(objective) if field.kw_only})


# every objective as it is by default, and with the settings of its worked cases
SETTINGS = {f"{name}-default": kind() for name, kind in OBJECTIVES.items()}
SETTINGS |= {f"{name}-{i}": bare(case.objective) for name, cases in CASES.items() for i, case in enumerate(cases)}
WITH_PULLS = {name: objective for name, objective in SETTINGS.items() if isinstance(objective.pulls, tuple)}


def leaves(seed: int) -> dict[str, list[Tensor]]:
    """Log-probs of the tokens of five answers of each branch, from one to seven tokens long."""
    generator = torch.Generator().manual_seed(seed)
    lengths = {
        name: torch.randint(1, 8, (ROWS,), generator=torch.Generator().manual_seed(i)).tolist()
        for i, name in enumerate(BRANCHES)
    }
    return {
        name: [-3 * torch.rand(n, generator=generator, dtype=torch.float64) for n in lengths[name]] for name in BRANCHES
    }


def sums(tokens: dict[str, list[Tensor]]) -> Tensor:
    """Log-probs of whole answers, [S]."""
    return torch.stack([row.sum() for branch in tokens.values() for row in branch])


def names(objective: Objective, policy: Scores, reference: Scores) -> dict[str, Any]:
    """What the texts are made of: fields, and numbers [B] of every branch."""
    values: dict[str, Any] = {field.name: getattr(objective, field.name) for field in fields(objective)}
    if isinstance(objective, RPO):  # its fields may be left to the preset
        values |= dict(zip(("beta", "eta"), objective.scales, strict=True))
    # numbers as float64, since a comparison times a number of Python's would be float32
    found = {k: torch.tensor(v, dtype=torch.float64) if isinstance(v, float) else v for k, v in values.items()}
    for branch, i in INDEX.items():
        logp, held = policy.sum(branch).detach(), reference.sum(branch)
        found |= {f"l_{i}": logp, f"d_{i}": logp - held, f"T_{i}": policy.count(branch)}
        found |= {f"a_{i}": policy.anchor(branch, "initial"), f"b_{i}": policy.anchor(branch, "previous")}
    return found


def told(objective: Objective, policy: Scores, reference: Scores) -> tuple[Tensor, Tensor]:
    """The pulls [B] of both answers by their texts."""
    known = {**KNOWN, **names(objective, policy, reference)}

    def value(text: str) -> Tensor:
        return torch.as_tensor(eval(text, {"__builtins__": {}}, known), dtype=torch.float64).expand(ROWS)

    if objective.m:
        known["m"] = value(objective.m)
        known["s"] = torch.sigmoid(-known["m"])
    assert isinstance(objective.pulls, tuple)
    raised, lowered = objective.pulls
    return value(raised), value(lowered)


def loss(objective: Objective, policy: Scores, reference: Scores) -> Tensor:
    """The loss of an optimizer step over just these rows."""
    divisors = {"examples": float(ROWS), "step": 1.0}
    divisors |= {f"tokens:{name}": float(policy.count(name).sum()) for name in BRANCHES}
    divisors |= {f"sequences:{name}": float(ROWS) for name in BRANCHES}
    terms = objective(policy, reference if objective.needs_reference else None)
    return sum(t.weight * t.losses.sum() / sum(divisors[unit] for unit in t.unit.split("+")) for t in terms.losses)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_objective_says_how_it_pulls(name: str) -> None:
    assert SETTINGS[name].pulls, (
        f"{name}: `pulls` is missing. Give two expressions, of the chosen (or alternate) and the rejected (or forget) "
        "answer, or say in a few words why there are none; see Objective.pulls."
    )


@pytest.mark.parametrize("name", WITH_PULLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_pulls_are_the_gradient(name: str, seed: int) -> None:
    objective, tokens = WITH_PULLS[name], leaves(seed)
    for branch in tokens.values():
        for row in branch:
            row.requires_grad_()
    reference = Scores.from_rows(**leaves(seed + 10))
    anchors = {"initial": sums(leaves(seed + 20)), "previous": sums(leaves(seed + 30))}
    policy = replace(Scores.from_rows(**tokens), anchors=anchors)
    (ROWS * loss(objective, policy, reference)).backward()
    sides = ("chosen", "rejected") if {"chosen", "rejected"} & set(objective.branches) else ("alternate", "forget")
    for side, pull, sign in zip(sides, told(objective, policy, reference), (-1, 1), strict=True):
        for row, expected in zip(tokens[side], pull, strict=True):
            found = torch.zeros_like(row) if row.grad is None else sign * row.grad
            # every token of an answer is pulled alike
            torch.testing.assert_close(found, expected.expand(len(row)), rtol=1e-9, atol=1e-12)
