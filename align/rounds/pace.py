"""How many steps a round's training takes, and how many of them warm up: a warm-up is one of all rounds together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pace:
    """What ``TrainingArguments`` say of the steps of every round.

    Attributes:
        examples: of an optimizer step, all processes together.
        epochs: over the pairs of a round.
        most: steps of a round whatever its pairs; 0 or less where epochs count.
        warmup: ``warmup_steps``: below 1 a share of all rounds' steps, else how many of them.
    """

    examples: int
    epochs: float
    most: int
    warmup: float

    @classmethod
    def of(cls, args: Any) -> Pace:
        """What training arguments say."""
        examples = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return cls(examples, args.num_train_epochs, args.max_steps, args.warmup_steps)

    def steps(self, pairs: int) -> int:
        """Optimizer steps of a round with so many pairs."""
        return self.most if self.most > 0 else math.ceil(self.epochs * math.ceil(pairs / self.examples))

    def warmup_steps(self, pairs: int, done: int, left: int) -> int:
        """Steps of a round that warm up: what earlier rounds left of the warm-up.

        Args:
            pairs: of the round.
            done: steps of the rounds before it.
            left: rounds after it, which are taken to be as long.
        """
        now = self.steps(pairs)
        warm = math.ceil(self.warmup * (done + now * (1 + left))) if self.warmup < 1 else int(self.warmup)
        return min(max(0, warm - done), now)
