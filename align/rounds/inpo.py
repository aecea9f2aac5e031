"""INPOTrainer: Iterative Nash Policy Optimization, in rounds."""

from __future__ import annotations

from typing import Any

from align.errors import UserError
from align.objectives import INPO, Objective, WeightedSum
from align.rounds.trainer import RoundTrainer


class INPOTrainer(RoundTrainer):
    """Iterative Nash Policy Optimization (arXiv 2407.00617): ``RoundTrainer`` with the objective ``INPO()``.

    The two policies that its loss compares with are the one before the first round and the one at the start of each;
    both are in the pairs as log-probs, so training holds one model.

    Raises:
        UserError: for whatever the caller can mend, with a sentence.
    """

    def __init__(self, model: str, objective: Objective | None = None, args: Any = None, **kwargs: Any) -> None:
        objective = INPO() if objective is None else objective
        parts = [part for part, _ in objective.parts] if isinstance(objective, WeightedSum) else [objective]
        if not any(isinstance(part, INPO) for part in parts):
            raise UserError(
                f"INPOTrainer trains with INPO, but the objective is {type(objective).__name__}: use RoundTrainer."
            )
        super().__init__(model, objective, args, **kwargs)
