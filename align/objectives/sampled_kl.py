"""Reverse KL of whole answers to the reference, by its gradient on the policy's own samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from align.objectives.base import Objective, Term, Terms

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores

BRANCH = "sample"


def _fits(value: Any, estimator: Any, key: str) -> Any:
    if estimator == "k2" and value not in (None, "none"):
        raise ValueError(
            f"k2 has no {key}: its gradient is that of score without one. Remove {key}, or use estimator: score."
        )
    return value


def _fits_field(value: Any, info: ValidationInfo) -> Any:
    return _fits(value, info.data.get("estimator"), str(info.field_name))


Estimator = Annotated[
    Literal["score", "k2", "reward_to_go"],
    Field(description="which unbiased gradient: of score and k2 it is the same, of reward_to_go it varies less"),
]
Baseline = Annotated[
    Literal["none", "leave_one_out"],
    Field(description="subtract the mean log-ratio of the prompt's other samples (one sample: nothing)"),
    AfterValidator(_fits_field),
]
Clip = Annotated[
    float | None,
    Field(gt=0, description="limit, in nats, of the log-ratio that a log-prob is multiplied with; ours, and biased"),
    AfterValidator(_fits_field),
]


@dataclass(frozen=True)
class SampledKL(Objective):
    """Pulls the policy's distribution over whole answers towards the reference's, on fresh samples of the policy.

    The samples must come from the policy as it is: at temperature 1, from the whole vocabulary. The loss has the value
    of the KL's estimate, which is also the metric ``kl/sampled``, and the gradient of the estimator, whose own value
    would mean nothing.
    """

    title: ClassVar = "Reverse KL on the policy's own samples"
    paper: ClassVar = "score-function gradient of KL(pi || pi_ref); its place in HyPO: arXiv 2406.01462"
    equation: ClassVar = (
        "y from pi(.|x), D = log pi(y|x) - log pi_ref(y|x) = sum_t D_t;  value: D;  gradient: that of  score: "
        "log pi(y|x) stop(D - b),  k2: D^2 / 2,  reward_to_go: sum_t log pi_t stop(sum_{u>=t} D_u - b_t);  mean over "
        "all samples of the step"
    )
    when: ClassVar = (
        "Beside a loss on offline pairs (hypo is dpo with it), to keep the policy near the reference where the policy "
        "itself goes, which offline answers do not show."
    )

    pulls: ClassVar = "on each sample y: lowers it by its log-ratio D, or raises it where D < 0"

    estimator: Estimator = "reward_to_go"
    baseline: Baseline = "none"
    clip: Clip = None

    def __post_init__(self) -> None:
        _fits(self.baseline, self.estimator, "baseline")
        _fits(self.clip, self.estimator, "clip")

    @property
    def branches(self) -> tuple[str, ...]:
        return (BRANCH,)

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def units(self) -> tuple[str, ...]:
        return (f"sequences:{BRANCH}",)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        assert reference is not None
        ratio = policy.sum(BRANCH) - reference.sum(BRANCH)
        count = ratio.new_full((), float(ratio.numel()))
        metrics = {"kl/sampled": (ratio.detach().sum(), count)}
        if self.clip is not None:
            metrics["kl/clipped"] = ((ratio.detach().abs() > self.clip).to(ratio).sum(), count)
        surrogate = ratio.square() / 2 if self.estimator == "k2" else self._surrogate(policy, reference)
        losses = surrogate - surrogate.detach() + ratio.detach()
        return Terms((Term(losses, f"sequences:{BRANCH}"),), metrics)

    def _surrogate(self, policy: Scores, reference: Scores) -> Tensor:
        """Log-probs times what they are to be weighted with, which takes no gradient; [n] for n samples."""
        columns = _by_position if self.estimator == "reward_to_go" else _whole
        logp = columns(policy)  # [n, T]; with the score estimator a sequence is one step, T = 1
        gaps = (logp - columns(reference)).detach()
        weights = gaps.flip(-1).cumsum(-1).flip(-1)  # what follows from a position on, itself included
        if self.clip is not None:
            weights = weights.clamp(-self.clip, self.clip)
        if self.baseline == "leave_one_out":
            weights = weights - _others(weights, policy)
        return (logp * weights).sum(-1)


def _whole(scores: Scores) -> Tensor:
    return scores.sum(BRANCH)[:, None]


def _by_position(scores: Scores) -> Tensor:
    """Log-probs of the samples' tokens, [n, T] with zeros behind the end of each."""
    import torch

    # the reference may have scored this branch alone, so places are counted within it
    logp, lengths = scores.of(BRANCH), scores.lengths[scores.sequences[BRANCH]]
    if not len(lengths):  # a batch without samples still has a gradient, of 0
        return _whole(scores)
    places = torch.arange(int(lengths.max()), device=lengths.device)
    table = logp.new_zeros(len(lengths), len(places))
    return table.index_put((places < lengths[:, None],), logp)


def _others(weights: Tensor, policy: Scores) -> Tensor:
    """Mean of ``weights`` [n, T] over the other samples of the same prompt, by position.

    It depends on other samples alone, so it leaves the expected gradient as it is, whatever the samples' lengths.
    """
    # samples lie prompt by prompt; any other branch has one sequence of each
    examples = min((len(ids) for name, ids in policy.sequences.items() if name != BRANCH), default=None)
    if examples is None:
        raise ValueError("baseline leave_one_out needs pairs beside the samples, to tell whose samples they are.")
    if not len(weights) or len(weights) == examples:
        return weights.new_zeros(())
    groups = weights.view(examples, -1, weights.shape[-1])
    return ((groups.sum(1, keepdim=True) - groups) / (groups.shape[1] - 1)).view_as(weights)
