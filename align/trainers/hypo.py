"""HyPOTrainer: offline pairs, and the reverse KL to the reference on fresh samples of the same prompts."""

from __future__ import annotations

from typing import Any, ClassVar

from align.engine.layout import TreeBatch
from align.errors import UserError
from align.objectives import HyPO, Objective
from align.recipe.sampling import Sampling
from align.trainers.online import OnlineTrainer, Row, check_settings

# an estimate of the policy's own KL needs draws from the policy itself, and from nothing narrower
_EXACT: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": None, "min_p": None, "stop": []}


class HyPOTrainer(OnlineTrainer):
    """Hybrid Preference Optimization (arXiv 2406.01462): DPO's loss on pairs, a KL term on the policy's own samples.

    Any objective on pairs with a term that reads the branch ``sample`` will do; the objective is ``HyPO()`` unless
    given. A sample that the length limit cuts off counts as far as it goes: the estimate is then the KL between the two
    models' distributions of so many tokens, which bounds that of whole answers from below.

    Raises:
        UserError: for whatever the caller can mend, with a sentence.
    """

    branch: ClassVar[str] = "sample"

    def __init__(
        self, model: Any, objective: Objective | None = None, args: Any = None, *, sampling: Sampling, **kwargs: Any
    ) -> None:
        objective = HyPO() if objective is None else objective
        check_settings(sampling=sampling)
        for name, exact in _EXACT.items():
            if (given := getattr(sampling, name)) != exact:
                raise UserError(
                    f"sampling.{name} is {given!r}, but the KL term needs samples of the policy as it is: leave it out "
                    f"(it is {exact!r} then)."
                )
        super().__init__(model, objective, args, sampling=sampling, **kwargs)
        for name, module in self.model.named_modules():
            if "lora_dropout" in name and getattr(module, "p", 0) > 0 and self.branch in self.objective.branches:
                raise UserError(
                    f"The adapter has a dropout of {module.p:g}, with which log-probs are not those of the policy that "
                    "drew the samples, and the KL would be wrong: set it to 0 (model.lora.dropout)."
                )

    def prompts(self, micro: TreeBatch) -> list[Row]:
        return [(example, None) for example in micro.examples] if micro.units["examples"] else []
