"""UnlearnTrainer: rows to forget, with an alternate answer and a retained partner where the objective reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from align.data.batches.collator import TreeCollator
from align.data.batches.packing import Order, shuffled
from align.data.batches.partners import Draw, Partners, partners
from align.data.tokens.unlearning import forget_rows, retain_rows
from align.errors import UserError
from align.objectives import NLL, NPO, Objective, WeightedSum
from align.objectives.base import sources_of
from align.trainers.base import AlignTrainer
from align.trainers.mixin import order_seed

BRANCHES = ("forget", "alternate", "retain")


class UnlearnTrainer(AlignTrainer):
    """Trains a model to forget ``train_dataset`` and, with an objective that reads it, to keep ``retain_dataset``.

    The objective is NPO unless given, with a likelihood term on the retained rows where there are any. Both data sets
    may be raw (any format with one answer to a row) or prepared (``prompt_ids`` and ``forget_ids``, ``alternate_ids``
    or ``retain_ids``). One example is a row to forget with everything that belongs to it, so a batch of 8 are 8 rows to
    forget and, with a retain term, 8 others.

    Args:
        retain_dataset: rows to keep; several sets are mixed as they are.
        partner: which retained row comes with which row to forget, see ``align.data.batches.partners``.
        alternates: texts that forgotten questions shall be answered with; None for the rows' own.
        alternates_each: how many of them each row gets, one an epoch in turn; prepared rows then stand so many times in
            succession.

    Raises:
        UserError: for whatever the caller can mend, with a sentence.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective | None = None,
        args: Any = None,
        *,
        retain_dataset: Dataset | Sequence[Dataset] | None = None,
        partner: Draw = "random",
        alternates: Sequence[str] | None = None,
        alternates_each: int = 1,
        **kwargs: Any,
    ) -> None:
        if objective is None:
            objective = NPO() if retain_dataset is None else WeightedSum(((NPO(), 1.0), (NLL(branch="retain"), 1.0)))
        if isinstance(objective, Objective):  # the base says what it must be
            _check(objective, retain_dataset, kwargs)
        self._retain, self._draw = retain_dataset, partner
        self._alternates, self._each = alternates, alternates_each
        self.pairs: Partners | None = None
        super().__init__(model, objective, args, **kwargs)

    def prepared(self, data: Any, tokenizer: Any, seed: int, say: Callable[[str], Any], **limits: Any) -> Any:
        """Rows to forget, prepared; the retained ones are prepared with them and kept in ``pairs``."""
        branches = sources_of(self.objective.branches)
        forget, each = forget_rows(
            data,
            tokenizer,
            alternate="alternate" in branches,
            texts=self._alternates,
            each=self._each,
            seed=seed,
            say=say,
            **limits,
        )
        kept = None
        if "retain" in branches and self._retain is not None:
            sets = [self._retain] if isinstance(self._retain, Dataset) else self._retain
            kept = [retain_rows(rows, tokenizer, say, **limits) for rows in sets]
        self.pairs = partners(forget, kept, seed=seed, draw=self._draw, each=each)
        return forget

    def tables(self, data: Any) -> list[Any]:
        if data is None or self.pairs is None:
            return []
        return [self.pairs.forget, *([] if self.pairs.retain is None else [self.pairs.retain.dataset])]

    def training_rows(self, dataset: Any, collator: TreeCollator, args: Any) -> tuple[Any, Sequence[int], Order]:
        assert self.pairs is not None
        order = self.order or shuffled(len(self.pairs), order_seed(args))
        return self.pairs, self.pairs.lengths(collator), self.pairs.order(order)


def _check(objective: Objective, retain: Any, kwargs: dict[str, Any]) -> None:
    branches = sources_of(objective.branches)
    if strange := [name for name in branches if name not in BRANCHES]:
        raise UserError(
            f"UnlearnTrainer trains on the branches {', '.join(BRANCHES)}, but the objective reads "
            f"{', '.join(strange)}: use PreferenceTrainer or AlignTrainer, or set the objective's branch."
        )
    if "retain" in branches and retain is None:
        raise UserError("The objective reads retained rows: give them as retain_dataset.")
    if "retain" not in branches and retain is not None:
        raise UserError(
            "retain_dataset is given, but the objective reads no retained rows: add NLL(branch='retain') or "
            "KL(branch='retain') to it (see WeightedSum), or leave the rows out."
        )
    if kwargs.get("eval_dataset") is not None:
        raise UserError("UnlearnTrainer takes no eval_dataset: forgetting is measured by a suite (align eval tofu).")
