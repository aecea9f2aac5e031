"""From a loss back to the formula behind it: the structure over W and L that gives the same numbers, if there is one.

The loss is called on made-up pairs. For each link, the loss is turned back into the number that went into the link;
that must be scale * rho + shift for the rho of one of the 225 structures, with the reference or without. What fits is
written as ``logic`` with a weight, and counts only if that has the loss of every pair. A sum is taken term by term.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

from align.objectives.base import Objective
from align.objectives.formulas.structures import PRESETS, Structure, formulas_of, two_atom_structures
from align.objectives.logic import Link, Logic, Probability, rho
from align.objectives.own import failures_told

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores

_PAIRS = 24
_NEAR = 0.48  # nats by token: so likely that 1 - p is not 1, even for a whole answer
_FAR = 60.0  # margins of 100 nats and more
_LENGTHS = {"chosen": 2, "rejected": 3}  # unlike, so that log-probs of a whole answer and by token can be told apart


def can_be_called(objective: Objective) -> bool:
    """Whether the log-probs of a chosen and a rejected answer are all that the loss of a pair needs."""
    from align.engine.reads import LogProb

    return (
        {"chosen", "rejected"} >= set(objective.branches)
        and set(objective.reads()) == {LogProb()}
        and not objective.anchors
        and not objective.coupled
    )


def decompile(objective: Objective) -> list[tuple[Logic, float] | None]:
    """For each term of an objective that ``can_be_called``: the ``logic`` and the weight that have its loss, or None.

    The objective's fields stay as they are, so beta and weight are found for these.
    """
    near, far = ((_made_up(0, width), _made_up(1, width)) for width in (_NEAR, _FAR))
    both = zip(_terms(objective, *near), _terms(objective, *far), strict=True)
    return [
        _structure_of(losses, beyond, weight, near, far, objective.needs_reference)
        for (losses, weight), (beyond, _) in both
    ]


def _structure_of(
    losses: Tensor,
    beyond: Tensor,
    weight: float,
    near: tuple[Scores, Scores],
    far: tuple[Scores, Scores],
    needs_reference: bool,
) -> tuple[Logic, float] | None:
    """What has these losses [B] of ``near`` pairs and ``beyond`` of ``far`` ones; ``weight`` multiplies them already.

    It is sought on near pairs and must hold on far ones: a loss may bend where the near ones do not come.
    """
    import torch

    if losses.shape != (_PAIRS,) or bool((losses < 0).any()):
        return None
    for logic, scale in _proposals(losses, *near, needs_reference):
        again = [scale * _terms(logic, *pairs)[0][0] for pairs in (near, far)]
        if all(torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(again, (losses, beyond), strict=True)):
            return logic, scale * weight
    return None


def _made_up(seed: int, width: float) -> Scores:
    """Scores of pairs, the log-prob of a token uniform over ``width`` nats, up to -0.02."""
    import torch

    from align.engine.scores import Scores

    generator = torch.Generator().manual_seed(seed)
    logp = {
        branch: -0.02 - width * torch.rand(_PAIRS, length, generator=generator, dtype=torch.float64)
        for branch, length in _LENGTHS.items()
    }
    return Scores.from_rows(**{branch: list(rows) for branch, rows in logp.items()})


def _terms(objective: Objective, policy: Scores, reference: Scores) -> list[tuple[Tensor, float]]:
    """The losses of pairs, [B], and the weight of each term."""
    with failures_told(objective):
        terms = objective(policy, reference if objective.needs_reference else None).losses
    # answers of a branch are equally long, so that a mean over tokens is one over each pair's
    tokens = {f"tokens:{branch}": length for branch, length in _LENGTHS.items()}
    return [(term.losses / tokens.get(term.unit, 1), term.weight) for term in terms]


def _proposals(
    losses: Tensor, policy: Scores, reference: Scores, needs_reference: bool
) -> Iterator[tuple[Logic, float]]:
    """What fits up to rounding; presets first, since other structures can have the same ratio of weights."""
    log_p = {kind: Logic(probability=kind).log_probs(policy, reference) for kind in get_args(Probability)}
    inner = {link: _before_link(link, losses)[losses > 0] for link in get_args(Link)}
    references = (True, False) if needs_reference else (False,)
    for (fields, structure), probability, against in product(_candidates(), log_p, references):
        p = log_p[probability]
        value = rho(structure, p) + (p["Rl"] - p["Rw"] if against else 0)
        for link in inner:
            scale, shift, exact = _line(value[losses > 0], inner[link])
            if exact and scale > 0:
                found = fields | {"link": link, "probability": probability, "reference": against}
                yield from _as_logic(found, scale, shift)


def _candidates() -> list[tuple[dict[str, Any], Structure]]:
    """Fields of ``logic`` and the structure that they mean: presets, then all."""
    presets = [({"preset": name}, preset.structure) for name, preset in PRESETS.items() if not preset.version_of]
    return [*presets, *((formulas_of(s), s) for s in two_atom_structures() if s.top != s.bottom)]


def _before_link(link: str, losses: Tensor) -> Tensor:
    """x of which the loss is -log sigmoid(x), x^2 with x below 0, or max(0, -x)."""
    import torch

    if link == "logistic":
        return -torch.expm1(losses).log()
    return -losses.sqrt() if link == "squared" else -losses


def _line(x: Tensor, y: Tensor) -> tuple[float, float, bool]:
    """Slope and intercept of the line through points (x, y), and whether all lie on it."""
    around, above = x - x.mean(), y - y.mean()
    slope = (around @ above) / (around @ around)
    exact = bool(len(x) > 2 and (above - slope * around).norm() <= 1e-6 * above.norm())
    return slope.item(), (y.mean() - slope * x.mean()).item(), exact


def _as_logic(fields: dict[str, Any], scale: float, shift: float) -> Iterator[tuple[Logic, float]]:
    """The objective with loss link(scale * rho + shift), and its weight. None for a shift that ``logic`` has not."""
    scale, shift = float(f"{scale:.9g}"), round(shift, 9)
    if fields.get("preset") == "CPO" and fields["reference"]:
        fields = fields | {"preset": "DPO", "reference": False}
    if fields["link"] == "logistic":
        if fields.get("preset") == "CPO" and shift < 0:
            yield Logic(**fields | {"preset": "SimPO"}, beta=scale, gamma=-shift), 1.0
        elif shift == 0:
            yield Logic(**fields, beta=scale), 1.0
    elif shift < 0:
        target = -shift / scale
        squared = fields["link"] == "squared"
        beta = float(f"{1 / (2 * target) if squared else target:.9g}")
        yield Logic(**fields, beta=beta), scale**2 if squared else scale
