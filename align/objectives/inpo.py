"""Iterative Nash Policy Optimization: a squared loss against two earlier policies (arXiv 2407.00617)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from align.objectives.base import Term, Terms, pair_metrics
from align.objectives.pairwise import Pairwise

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores


def _ratio(value: Any) -> Any:
    """The number that a text such as 1/3 stands for, which is a text to YAML; anything else as it is."""
    if not isinstance(value, str):
        return value
    over, _, under = value.partition("/")
    try:
        return float(over) / float(under or "1")
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected a number or a ratio such as 1/3, got the text {value[:40]!r}.") from None


@dataclass(frozen=True)
class INPO(Pairwise):
    """One round's loss towards the Nash policy of a preference: the margin over a mix of two policies aims at a target.

    Both are known by the log-probs that rows bring along: ``initial`` is the policy before the first round,
    ``previous`` the one at the start of this round, which also drew the answers. No second model is in memory.
    """

    title: ClassVar = "Iterative Nash Policy Optimization"
    paper: ClassVar = "arXiv 2407.00617 (ICLR 2025), the loss of its algorithm; eta and tau of its experiments"
    equation: ClassVar = (
        "h = log pi(y_w)/pi(y_l) - r log pi_1(y_w)/pi_1(y_l) - (1 - r) log pi_t(y_w)/pi_t(y_l), r = tau_ratio = "
        "tau / eta, pi_1 the initial and pi_t the previous policy;  loss = (h - 1 / (2 eta))^2"
    )
    when: ClassVar = (
        "In rounds, with preferences that no score explains (a judge that compares). It goes to the policy that no "
        "other beats, held near the initial one by tau."
    )

    m: ClassVar = "(l_w - l_l) - tau_ratio * (a_w - a_l) - (1 - tau_ratio) * (b_w - b_l)"
    pulls: ClassVar = ("2 * (1 / (2 * eta) - m)", "2 * (1 / (2 * eta) - m)")

    eta: Annotated[float, Field(gt=0, description="the target margin is 1/(2 eta) nats; smaller goes further")] = 0.005
    tau_ratio: Annotated[
        float,
        BeforeValidator(_ratio),
        Field(ge=0, le=1, description="tau / eta, the pull to the initial policy; a number, or a text such as 1/3"),
    ] = 1 / 3

    @property
    def mix(self) -> dict[str, float]:
        """Shares of the two policies in what the margin is measured from; those of 0 are left out."""
        shares = {"initial": self.tau_ratio, "previous": 1 - self.tau_ratio}
        return {name: share for name, share in shares.items() if share}

    @property
    def anchors(self) -> tuple[str, ...]:
        return tuple(self.mix)

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        chosen, rejected = self._gain(policy, "chosen"), self._gain(policy, "rejected")
        h = chosen - rejected
        # in units of the target: at it the margin is 1/2, as with ipo's tau
        metrics = pair_metrics(self.eta * chosen, self.eta * rejected, policy)
        metrics["inpo/h"] = (h.detach().sum(), h.new_full((), float(h.numel())))
        return Terms((Term((h - 1 / (2 * self.eta)) ** 2),), metrics)

    def _gain(self, policy: Scores, branch: str) -> Tensor:
        """Log-prob of a branch less its mixed log-prob under both anchors, [B] in nats."""
        return policy.sum(branch) - sum(share * policy.anchor(branch, name) for name, share in self.mix.items())
