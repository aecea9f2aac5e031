"""What an objective is: a frozen dataclass whose fields are its configuration and whose call is its mathematics.

Objective modules import no torch when they are imported, so that a recipe can be validated and explained in a fraction
of a second. Everything tensor-shaped happens inside ``__call__``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.reads import AnyRead
    from align.engine.scores import Scores


@dataclass(frozen=True)
class Term:
    """One additive part of a loss.

    ``losses`` are the per-item values (float32, any shape; their sum is what counts), ``unit`` names what the sum is
    divided by: ``"examples"``, ``"sequences:<branch>"`` or ``"tokens:<branch>"`` for the sequences of a branch or their
    target tokens, or a sum of units such as ``"tokens:alternate+tokens:retain"``. The divisor is added up over the
    whole optimizer step on all ranks, so accumulation, packing and world size do not change the loss. ``"step"``
    divides by nothing: the term is a sum over the optimizer step, and no part of an evaluation's loss, which has none.
    """

    losses: Tensor
    unit: str = "examples"
    weight: float = 1.0


@dataclass(frozen=True)
class Terms:
    """What an objective returns: terms to add up, and metrics as (sum, count) pairs.

    ``running`` are pairs too. The trainer keeps means of them over the steps of training and hands these back as
    ``Scores.running``, from the second step on.
    """

    losses: tuple[Term, ...]
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    running: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """Base of all objectives. Fields of a subclass are the keys a recipe may set.

    Class attributes say what the plumbing must provide: ``branches`` (columns ``<branch>_ids`` of a row),
    ``needs_reference``, and the reads of each scored token.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""  # arXiv id and where in the paper
    equation: ClassVar[str] = ""
    when: ClassVar[str] = ""  # when to use it, one or two sentences

    @property
    def m(self) -> str:
        """What ``m`` stands for in ``pulls``; a class writes ``m: ClassVar = "..."``."""
        return ""

    @property
    def pulls(self) -> tuple[str, str] | str | None:
        """How hard the loss pulls on either answer of a pair; a class writes ``pulls: ClassVar = ("...", "...")``.

        The loss of one pair changes by minus the first with the log-prob of the answer to be raised (chosen, or
        alternate), and by the second with that of the answer to be lowered (rejected, or forget), whole answers. Both
        are expressions that a test evaluates and compares with the gradient. They are of the fields, ``m``, ``s`` =
        sigmoid(-m), log-probs ``l_w`` and ``l_l``, log-ratios to the reference ``d_w`` and ``d_l``, target tokens
        ``T_w`` and ``T_l`` (with ``_a`` and ``_f`` for alternate and forget, ``_r`` for retain), log-probs under the
        initial policy ``a_w`` and ``a_l`` and under the previous one ``b_w`` and ``b_l``, ``mean`` over the step, and
        the functions ``sigmoid``, ``exp`` and ``log``.
        Options that all losses of a kind share are left at their defaults. Where a loss has no such two numbers, it
        says so in a few words.
        """
        return None

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches of a row that must be scored."""
        return ("chosen", "rejected")

    @property
    def row_values(self) -> tuple[str, ...]:
        """Numbers of a row that are used where it has a column of that name; see ``Scores.value``."""
        return ()

    @property
    def scores_answers(self) -> bool:
        """Whether it reads the scores of a reward model, which has no log-probs."""
        from align.engine.reads import Score

        return Score() in self.reads()

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs (or distributions) under the reference policy are used."""
        return False

    @property
    def reference_branches(self) -> tuple[str, ...]:
        """Branches that are scored under the reference."""
        return self.branches if self.needs_reference else ()

    @property
    def margin_scale(self) -> float | None:
        """What one nat of an answer's log-ratio to the reference counts in the margin; None where no such scale is."""
        return getattr(self, "beta", None) if self.needs_reference else None

    @property
    def anchors(self) -> tuple[str, ...]:
        """Models, ``initial`` or ``previous``, under which rows must bring log-probs along; see ``Scores.anchor``."""
        return ()

    @property
    def compares_pairs(self) -> bool:
        """Whether it prefers some answers to others, so that an accuracy on pairs of them means something."""
        return {"chosen", "rejected"} <= set(self.branches)

    @property
    def own_scales(self) -> bool:
        """Whether its margin weighs the two log-ratios of a pair unequally; see ``pair_metrics``."""
        return False

    @property
    def by_token(self) -> bool:
        """Whether it looks at the reference's log-probs of single tokens, so that sums of answers would not do."""
        return False

    @property
    def bare(self) -> Self:
        """Itself without options that need more than sums of log-probs, or that only weigh or scale its loss."""
        return self

    def settled(self, running: Mapping[str, Tensor]) -> Self:
        """Itself with numbers in place of options that are measured while training, as ``running`` has them by now."""
        return self

    @property
    def units(self) -> tuple[str, ...]:
        """Every ``Term.unit`` that this objective can return."""
        return ("examples",)

    @property
    def coupled(self) -> str | None:
        """Why the loss of one example depends on its batch mates, or None where it does not."""
        return None

    def balance(self, rows: Mapping[str, int]) -> str:
        """What is wrong with the number of ``rows`` that an epoch has of each branch; empty where nothing is."""
        return ""

    def reads(self) -> tuple[AnyRead, ...]:
        """Per-token quantities needed from the policy; log-probs alone unless overridden."""
        from align.engine.reads import LogProb

        return (LogProb(),)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        """Map scores to terms. ``reference`` is None unless ``needs_reference``."""
        raise NotImplementedError


@dataclass(frozen=True)
class WeightedSum(Objective):
    """A sum of objectives with weights; what a list in a recipe means."""

    parts: tuple[tuple[Objective, float], ...] = ()

    @property
    def branches(self) -> tuple[str, ...]:
        return _unique(b for o, _ in self.parts for b in o.branches)

    @property
    def row_values(self) -> tuple[str, ...]:
        return _unique(v for o, _ in self.parts for v in o.row_values)

    @property
    def needs_reference(self) -> bool:
        return any(o.needs_reference for o, _ in self.parts)

    @property
    def reference_branches(self) -> tuple[str, ...]:
        return _unique(b for o, _ in self.parts for b in o.reference_branches)

    @property
    def margin_scale(self) -> float | None:
        return max((o.margin_scale for o, _ in self.parts if o.margin_scale is not None), default=None)

    @property
    def anchors(self) -> tuple[str, ...]:
        return _unique(a for o, _ in self.parts for a in o.anchors)

    @property
    def compares_pairs(self) -> bool:
        return any(o.compares_pairs for o, _ in self.parts)

    @property
    def by_token(self) -> bool:
        return any(o.by_token for o, _ in self.parts)

    @property
    def own_scales(self) -> bool:
        first = next((o for o, _ in self.parts if o.compares_pairs), None)  # whose metrics count
        return first is not None and first.own_scales

    def settled(self, running: Mapping[str, Tensor]) -> Self:
        parts = ((o.settled(_part(i, running)), weight) for i, (o, weight) in enumerate(self.parts))
        return replace(self, parts=tuple(parts))

    @property
    def units(self) -> tuple[str, ...]:
        return _unique(u for o, _ in self.parts for u in o.units)

    @property
    def coupled(self) -> str | None:
        return "; ".join(o.coupled for o, _ in self.parts if o.coupled) or None

    def balance(self, rows: Mapping[str, int]) -> str:
        return "; ".join(text for o, _ in self.parts if (text := o.balance(rows)))

    def reads(self) -> tuple[AnyRead, ...]:
        return _unique(r for o, _ in self.parts for r in o.reads())

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        losses: list[Term] = []
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        running: dict[str, tuple[Tensor, Tensor]] = {}
        for i, (objective, weight) in enumerate(self.parts):
            terms = objective(replace(policy, running=_part(i, policy.running)), reference)
            losses += [Term(t.losses, t.unit, t.weight * weight) for t in terms.losses]
            running |= {f"{i}.{key}": value for key, value in terms.running.items()}
            for key, value in terms.metrics.items():
                metrics.setdefault(key, value)
        return Terms(tuple(losses), metrics, running)


def _part(number: int, running: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The running means of one part of a sum: each part has its own."""
    start = f"{number}."
    return {key.removeprefix(start): value for key, value in running.items() if key.startswith(start)}


def _unique(items: Iterable) -> tuple:
    return tuple(dict.fromkeys(items))


def branch_metrics(policy: Scores, *branches: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean sequence log-prob and mean token probability of each branch, as (sum, count)."""
    metrics = {}
    for name in branches:
        logp = policy.sum(name).detach()
        p = policy.total(name, policy.tokens["logp"].detach().exp())
        metrics[f"logps/{name}"] = (logp.sum(), logp.new_full((), float(logp.numel())))
        metrics[f"p/{name}"] = (p.sum(), policy.count(name).sum())
    return metrics


def pair_metrics(
    chosen_reward: Tensor,
    rejected_reward: Tensor,
    policy: Scores,
    names: tuple[str, str] = ("chosen", "rejected"),
    *,
    gap: Tensor | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Metrics that every pairwise objective reports, as (sum, count).

    ``chosen_reward`` and ``rejected_reward`` are implicit rewards [B]. ``rewards/accuracies`` is the share of pairs
    whose chosen answer has the larger one, ties as half. An objective with ``own_scales``, which multiplies the two
    log-ratios with different numbers, gives ``gap``, d_w - d_l [B] in nats: then the accuracy is the share with
    gap > 0, since raising all answers alike would make the larger scale win, and that by the rewards is
    ``rewards/own_accuracies``. ``names`` are the branches.
    """
    chosen, rejected = names
    margin = (chosen_reward - rejected_reward).detach()
    count = margin.new_full((), float(margin.numel()))
    own = {} if gap is None else {"rewards/own_accuracies": (_wins(margin), count)}
    return {
        f"rewards/{chosen}": (chosen_reward.detach().sum(), count),
        f"rewards/{rejected}": (rejected_reward.detach().sum(), count),
        "rewards/margins": (margin.sum(), count),
        "rewards/accuracies": (_wins(margin if gap is None else gap.detach()), count),
        **own,
        f"logps/{chosen}": (policy.sum(chosen).detach().sum(), count),
        f"logps/{rejected}": (policy.sum(rejected).detach().sum(), count),
    }


def _wins(margin: Tensor) -> Tensor:
    """How many margins [B] are positive; 0 counts as half."""
    return ((margin > 0).float() + 0.5 * (margin == 0).float()).sum()


ROW_VALUES = ("preference", "margin")  # numbers of a row that an objective may read
LABELLED = ("desirable", "undesirable")  # branches of which a row has one: its completion, by its label
MISMATCH = "mismatch"  # beside them: the completion of a row with another prompt
FRESH = ("sample", "survivor")  # branches that are drawn from the policy while it trains: rows have no columns for them


def reads_labels(branches: Iterable[str]) -> bool:
    """Whether rows bring these branches as a completion with a label."""
    return set(LABELLED) <= set(branches)


def source_of(branch: str) -> str:
    """The branch whose columns ``branch`` is made of: ``retain`` for ``retain_all``, else itself."""
    return branch.removesuffix("_all")


def sources_of(branches: Iterable[str]) -> tuple[str, ...]:
    """The branches that rows must have for a batch of ``branches``, each once."""
    return tuple(dict.fromkeys(source_of(branch) for branch in branches if branch not in FRESH))
