"""PreferenceTrainer: offline pairs, and answers with a label."""

from __future__ import annotations

from typing import Any

from align.errors import UserError
from align.objectives import DPO, Objective
from align.objectives.base import LABELLED, MISMATCH, source_of
from align.trainers.base import AlignTrainer


class PreferenceTrainer(AlignTrainer):
    """Trains on preference pairs, where TRL's ``DPOTrainer`` would be used; the objective is DPO unless given.

    With ``KTO`` it trains on labelled answers (``prompt``, ``completion``, ``label``), as TRL's ``KTOTrainer`` does, or
    on pairs taken apart into such rows.

    ``ref_model`` is not an argument: the reference is the policy as it was handed over (see ``reference``).
    """

    def __init__(self, model: Any, objective: Objective | None = None, args: Any = None, **kwargs: Any) -> None:
        objective = DPO() if objective is None else objective
        branches = objective.branches if isinstance(objective, Objective) else ()  # the base says what it must be
        unknown = [name for name in branches if source_of(name) not in ("chosen", "rejected", *LABELLED, MISMATCH)]
        if unknown:
            raise UserError(
                f"PreferenceTrainer trains on the branches 'chosen' and 'rejected', but the objective reads "
                f"{', '.join(map(repr, unknown))}: use AlignTrainer, or set the objective's branch."
            )
        super().__init__(model, objective, args, **kwargs)
