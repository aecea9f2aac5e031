"""Negative log-likelihood of one branch: the SFT term, the retain term, and plain fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from align.objectives.base import Objective, Term, Terms

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores

Norm = Literal["token_mean", "seq_mean", "sum"]
Positions = Literal["answer", "all"]

_SIDES = {"chosen": "w", "rejected": "l", "alternate": "a", "forget": "f"}  # index of their numbers in ``pulls``


@dataclass(frozen=True)
class NLL(Objective):
    """Likelihood term with its normalisation in view, since papers and codes differ exactly there."""

    title: ClassVar = "Negative log-likelihood"
    paper: ClassVar = "maximum likelihood; as a regularizer of DPO in arXiv 2406.07327 and 2404.19733"
    equation: ClassVar = (
        "S = -log pi(y|x) over the target tokens of a branch, n their number;  token_mean: sum S / sum n,  "
        "seq_mean: mean of S / n,  sum: mean of S"
    )
    when: ClassVar = (
        "Alone as fine-tuning (branch: completion); beside a preference loss with a weight, to hold the chosen "
        "answer's likelihood up; as the retain term of unlearning."
    )

    branch: Annotated[str, Field(pattern="^[a-z_]+$", description="the branch that is imitated")] = "chosen"
    norm: Annotated[Norm, Field(description="what the sum of token losses is divided by")] = "token_mean"
    positions: Annotated[
        Positions, Field(description="which tokens are targets: the answer's, or all but the prompt's first")
    ] = "answer"

    @property
    def pulls(self) -> tuple[str, str] | str:
        (branch,) = self.branches
        if branch not in _SIDES:
            return f"raises {branch} by {norm_pull(self.norm, 'T')}"
        pull = norm_pull(self.norm, f"T_{_SIDES[branch]}")
        return (pull, "0") if branch in ("chosen", "alternate") else ("0", f"-{pull}")  # raises what others lower

    @property
    def branches(self) -> tuple[str, ...]:
        return (branch_read(self.branch, self.positions),)

    @property
    def units(self) -> tuple[str, ...]:
        return (norm_unit(self.norm, *self.branches),)

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        (branch,) = self.branches
        losses = -policy.sum(branch)
        term = normalised(losses, policy, branch, self.norm)
        return Terms((term,), {f"nll/{branch}": (losses.detach().sum(), policy.count(branch).sum())})


def branch_read(branch: str, positions: Positions) -> str:
    """The branch to read: ``<branch>_all`` has the same tokens, with those of the prompt as targets too."""
    return f"{branch}_all" if positions == "all" else branch


def norm_unit(norm: Norm, branch: str) -> str:
    """The ``Term.unit`` that a normalisation divides by; an example may have several sequences of one branch."""
    return f"tokens:{branch}" if norm == "token_mean" else f"sequences:{branch}"


def norm_pull(norm: Norm, tokens: str) -> str:
    """What a normalisation multiplies an answer's log-prob with, as an expression of its ``tokens``; see ``pulls``."""
    return {"token_mean": f"1 / mean({tokens})", "seq_mean": f"1 / {tokens}", "sum": "1"}[norm]


def normalised(losses: Tensor, policy: Scores, branch: str, norm: Norm) -> Term:
    """Sums of token losses [n], one for each sequence of the branch, as a term with the given normalisation."""
    if norm == "seq_mean":
        losses = losses / policy.count(branch).clamp(min=1)
    return Term(losses, norm_unit(norm, branch))
