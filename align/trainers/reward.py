"""RewardModelTrainer: a model that scores answers, trained on pairs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from align.compat import Config, RewardConfig, RewardTrainer
from align.data.batches.collator import TreeCollator
from align.data.batches.packing import Order
from align.engine.scores import Scores
from align.engine.scoring import attach, packs
from align.errors import UserError
from align.models.ends import name_pad
from align.objectives import BradleyTerry
from align.objectives.base import Objective
from align.runs.quiet import silent
from align.trainers.layers import Layers, compile_wanted
from align.trainers.tree import Data, TreeTrainer

_BINS = 10  # of confidence, from one half to one


class RewardModelTrainer(TreeTrainer, RewardTrainer):
    """Trains a reward model on preference pairs, where TRL's ``RewardTrainer`` would be used.

    The prompt is computed once for both answers, rows are packed without padding, and the score is read at the last
    token of each answer, found by length: TRL 1.16 looks for the last token that is no pad token, and where EOS pads it
    reads the token before EOS. Models whose head is no linear ``score`` layer (encoders) compute padded rows by their
    own forward, which is said.

    Args:
        model: a name, or a ``...ForSequenceClassification`` with one label. A language model under that name gets a new
            head.
        objective: ``BradleyTerry()`` unless given.
        args: ``trl.RewardConfig`` or ``transformers.TrainingArguments``; the weight of centring goes to the objective.
        train_dataset, eval_dataset: pairs in any format that ``align check`` names, with the numbers ``preference`` and
            ``margin`` where rows have them; or prepared rows.

    The other arguments mean what they mean in ``AlignTrainer``.

    Attributes:
        calibration: of the last evaluation, bins of confidence that are not empty, each a mapping of ``confidence``
            (mean of sigmoid(|r_w - r_l|)), ``accuracy`` (share of preferred answers with the higher score) and ``n``.
        ties: pairs of the last evaluation whose label prefers neither answer.

    Raises:
        UserError: for whatever the caller can mend, with a sentence.
    """

    config_kind: ClassVar[type[Config]] = RewardConfig
    reward: ClassVar[bool] = True
    digest: None = None  # of a reference: there is none

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        objective: Objective | None = None,
        args: TrainingArguments | None = None,
        *,
        train_dataset: Data,
        eval_dataset: Data | dict[str, Data] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        max_length: int | None = 1024,
        truncation: str = "drop",
        order: Order | None = None,
        max_tokens_per_microbatch: int | None = None,
        layers: Layers | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        layers = layers or Layers()
        ready = self.make_ready(
            model,
            BradleyTerry() if objective is None else objective,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            max_length=max_length,
            truncation=truncation,
            order=order,
            max_tokens_per_microbatch=max_tokens_per_microbatch,
            layers=layers,
            template_arguments=template_arguments,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        say = print if ready["args"].process_index == 0 else silent
        for sentence in name_pad(ready["model"], ready["processing_class"]):
            say(sentence)
        super().__init__(**ready)
        self.check_ready()
        if packs(self.model):
            attach(self.model)
        compile_wanted(layers, self.model, None, self._sharded(), say)
        self.reference = None
        self.get_started()
        self._bins = torch.zeros(_BINS + 1, 3)
        self.calibration: list[dict[str, float]] = []
        self.ties = 0

    def _check_objective(self, objective: Objective) -> None:
        if not objective.scores_answers:
            raise UserError(
                f"{type(objective).__name__} reads log-probs, which a reward model has none of: use BradleyTerry(), or "
                "PreferenceTrainer for a policy."
            )

    def _check_rows(self, model: PreTrainedModel, collator: TreeCollator, *tables: Data) -> None:
        super()._check_rows(model, collator, *tables)
        for rows in tables:
            preferences = _numbers(rows, "preference")
            if wrong := [float(value) for value in preferences if not 0 <= value <= 1][:1]:
                raise UserError(
                    f"A row has the preference {wrong[0]:g}; expected a number from 0 (rejected is better) to 1 "
                    "(chosen is better)."
                )
        asked = "margin" in self.objective.row_values and isinstance(tables[0], Dataset)
        if asked and not len(_numbers(tables[0], "margin")):
            raise UserError(
                "objective.margin: no training row has a number in a column margin, so nothing would be subtracted; "
                "name the column (data.train.columns: {margin: NAME}), or leave margin out."
            )

    def look_at(self, policy: Scores) -> None:
        """Counts confidence and hits of one micro-batch of an evaluation."""
        margin = policy.score("chosen") - policy.score("rejected")
        self._bins = self._bins + _calibration(margin, policy.value("preference", margin, missing=1.0))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in every trainer; it fills ``calibration`` and adds ``calibration_error`` to what is logged."""
        self._bins = torch.zeros(_BINS + 1, 3, device=self.args.device)
        return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds our metrics to what is logged."""
        if self._eval_prefix is not None and any(key.startswith(self._eval_prefix) for key in logs):
            *bins, (ties, _, _) = self.sum_over_ranks(self._bins).tolist()
            self.ties = int(ties)
            self.calibration = [{"confidence": c / n, "accuracy": a / n, "n": int(n)} for n, c, a in bins if n]
            pairs = sum(found["n"] for found in self.calibration)
            if pairs:
                off = sum(found["n"] * abs(found["confidence"] - found["accuracy"]) for found in self.calibration)
                logs[f"{self._eval_prefix}_calibration_error"] = off / pairs
        super().log(logs, start_time)


def _numbers(rows: Data, name: str) -> np.ndarray:
    """The numbers in a column of a table, without rows that have none."""
    if not isinstance(rows, Dataset) or name not in rows.column_names:
        return np.empty(0)
    values = np.asarray(rows[name][:], dtype=np.float64)
    return values[~np.isnan(values)]


def _calibration(margin: Tensor, preference: Tensor) -> Tensor:
    """(pairs, sum of confidence, sum of hits) for each bin of confidence; pairs with tied labels in a last row.

    Args:
        margin: r_w - r_l [B].
        preference: probability [B] that the chosen answer is better. Where it is less than one half the rejected answer
            is the preferred one.
    """
    side = (preference - 0.5).sign()
    confidence = margin.abs().sigmoid()
    hit = (side * margin > 0).float() + 0.5 * (margin == 0).float()
    place = ((confidence - 0.5) * 2 * _BINS).long().clamp(max=_BINS - 1)
    place = torch.where(side == 0, _BINS, place)
    values = torch.stack([torch.ones_like(hit), confidence, hit], dim=1).float()
    return values.new_zeros(_BINS + 1, 3).index_add(0, place, values)
