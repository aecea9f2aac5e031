"""Odds Ratio Preference Optimization: fine-tuning that also sets answers apart (arXiv 2403.07691)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field

from align.objectives.base import Term, Terms, pair_metrics
from align.objectives.nll import NLL, Positions, norm_pull
from align.objectives.pairwise import Pairwise
from align.objectives.stable import log1mexp

if TYPE_CHECKING:
    from align.engine.scores import Scores


@dataclass(frozen=True)
class ORPO(Pairwise):
    """Likelihood of the chosen answer, plus a logistic loss on the ratio of both answers' odds."""

    title: ClassVar = "Odds Ratio Preference Optimization"
    paper: ClassVar = "arXiv 2403.07691, eqs. 6 and 7, as TRL's experimental ORPOTrainer; beta is the paper's lambda"
    equation: ClassVar = (
        "log p = log pi(y|x) / |y|;  m = log(p_w / (1 - p_w)) - log(p_l / (1 - p_l));  "
        "loss = NLL(chosen) - beta log sigmoid(m), the NLL by token and, with positions: all, of the prompt too"
    )
    when: ClassVar = (
        "In place of fine-tuning and preference training one after the other, from a base model, without a reference. "
        "Most of its pull is likelihood, so the chosen answers are imitated."
    )

    m: ClassVar = "l_w / T_w - log(1 - exp(l_w / T_w)) - l_l / T_l + log(1 - exp(l_l / T_l))"

    beta: Annotated[float, Field(gt=0, description="weight of the odds ratio's loss")] = 0.1
    positions: Annotated[
        Positions, Field(description="targets of the likelihood: all but the prompt's first token, or the answer's")
    ] = "all"

    @property
    def pulls(self) -> tuple[str, str]:
        odds = "beta * s / (1 - exp(l_{i} / T_{i})) / T_{i}"
        # of the prompt and the answer together the likelihood is that of another branch, chosen_all
        likelihood = "" if self.positions == "all" else f" + {norm_pull('token_mean', 'T_w')}"
        return odds.format(i="w") + likelihood, odds.format(i="l")

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*super().branches, *self._likelihood.branches)))

    @property
    def units(self) -> tuple[str, ...]:
        return ("examples", *self._likelihood.units)

    @property
    def bare(self) -> Self:
        return replace(super().bare, positions="answer")

    @property
    def _likelihood(self) -> NLL:
        return NLL(positions=self.positions)

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        from torch.nn.functional import logsigmoid

        imitation = self._likelihood(policy, reference)
        chosen, rejected = policy.mean("chosen"), policy.mean("rejected")
        odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
        metrics = pair_metrics(self.beta * chosen, self.beta * rejected, policy)
        metrics["orpo/log_odds"] = (odds.detach().sum(), odds.new_full((), float(odds.numel())))
        return Terms((Term(-logsigmoid(odds), weight=self.beta), *imitation.losses), {**metrics, **imitation.metrics})
