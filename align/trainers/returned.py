"""What an objective of the user's own returned, looked at before it is divided and added up."""

from __future__ import annotations

from typing import Any

from align.engine.scores import Scores
from align.errors import UserError
from align.objectives.base import Objective, Terms
from align.objectives.own import failures_told


def terms_of(objective: Objective, policy: Scores, reference: Scores | None) -> Terms:
    """The terms of a micro-batch. Raises ``UserError`` where the user's code fails or returns what cannot be used."""
    with failures_told(objective):
        terms = objective(policy, reference)
    check_terms(objective, terms)
    return terms


def check_terms(objective: Objective, terms: Any) -> None:
    """Refuse what would end in a traceback, or in a loss that is divided twice.

    Raises:
        UserError: with what to return instead.
    """
    name = type(objective).__name__
    if not isinstance(terms, Terms):
        raise UserError(
            f"{name} returned a {type(terms).__name__}; an objective returns align.objectives.base.Terms: "
            "Terms((Term(losses),)) with the loss of each example, shape [examples]."
        )
    for term in terms.losses:
        if term.unit not in objective.units:
            raise UserError(
                f"{name} returned a term whose unit is {term.unit!r}, which its property units does not name: "
                f"{', '.join(map(repr, objective.units))}. Add it there."
            )
        if not term.losses.ndim and term.unit != "step":
            raise UserError(
                f"{name} returned one number as the loss of all {term.unit}, and that would be divided by their number "
                "in the step once more. Return the loss of each, shape [examples], without a mean."
            )
