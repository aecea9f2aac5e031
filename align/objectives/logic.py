"""A loss from a logical formula about what the policy should give (arXiv 2412.17696)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from align.objectives.base import Term, Terms, pair_metrics
from align.objectives.formulas.formula import base_of, parse
from align.objectives.formulas.structures import PRESETS, Row, Structure, compiled
from align.objectives.pairwise import Pairwise
from align.objectives.stable import log1mexp

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine.scores import Scores

Name = Literal[
    "CPO", "ORPO", "DPO", "SimPO", "CE", "CEUnl", "unCPO", "cCPO", "cfUnl", "fUnl", "qfUnl", "cUNL", "sCE", "l20"
]
Link = Literal["logistic", "squared", "hinge"]
Probability = Literal["per_token", "sequence"]

NEAREST_TO_CERTAIN = -1e-6  # log-prob above which 1 - p is no longer told apart from 0


def _readable(text: str) -> str:
    parse(text)
    return text


Text = Annotated[str, AfterValidator(_readable)]


@dataclass(frozen=True)
class Logic(Pairwise):
    """A structure (``formulas.structures``) as a loss: how much likelier its top is than its bottom.

    Atoms are independent events, so a row's weight is the product of p where an atom is true and 1 - p where it is
    false, and a side's weight is the sum over its rows.
    """

    title: ClassVar = "A logical formula as a loss, and named ones"
    paper: ClassVar = "arXiv 2412.17696"
    equation: ClassVar = (
        "top = (P or P_A) and P_C, bottom = (not P or P_A) and P_C, with P formula, P_C condition, P_A additive;  "
        "rho = log weight(top) - log weight(bottom), with reference: true plus log r_l - log r_w;  "
        "loss = -log sigmoid(beta rho),  squared: (rho - 1/(2 beta))^2,  hinge: max(0, beta - rho)"
    )
    when: ClassVar = (
        "To say in a formula what a pair should teach, or to take a known loss a step stronger or weaker in the order "
        "of entailment. align explain logic.cCPO shows one preset; align explain dpo --logic reads a loss as a formula."
    )

    pulls: ClassVar = "beta * s * d rho / d l of either answer, see align explain logic.CPO and the other presets"

    preset: Annotated[
        Name | None, Field(description="a named structure; CPO where there is no formula either", examples=["cCPO"])
    ] = None
    formula: Annotated[
        Text | None, Field(description="P, what should hold, over W, L, Rw, Rl, Mw, Ml; in place of a preset")
    ] = None
    condition: Annotated[Text, Field(description="P_C: rows of the truth table in which it fails are left out")] = (
        "true"
    )
    additive: Annotated[Text, Field(description="P_A: rows in which it holds count on both sides")] = "false"
    link: Annotated[Link, Field(description="how the loss falls with rho")] = "logistic"
    beta: Annotated[
        float, Field(gt=0, description="scale of rho; of squared the target is 1/(2 beta), of hinge beta")
    ] = 1.0
    gamma: Annotated[
        float, Field(ge=0, description="SimPO's target margin: Mw has probability 1 and Ml exp(-gamma / beta)")
    ] = 0.0
    reference: Annotated[
        bool, Field(description="measure against the reference: add log r_l - log r_w to rho, as DPO does to CPO")
    ] = False
    probability: Annotated[
        Probability, Field(description="p of an answer: exp of its mean log-prob by token, or of the sum")
    ] = "per_token"

    def __post_init__(self) -> None:
        if self.preset is not None and self.formula is not None:
            raise ValueError("give a preset or a formula, not both.")
        if self.formula is None and (self.condition, self.additive) != ("true", "false"):
            raise ValueError("condition and additive belong to a formula; a preset has its own. Add formula.")
        structure = self.structure
        if structure.top == structure.bottom:
            raise ValueError("top and bottom are the same rows, so the loss is constant and nothing would be learned.")
        named = {base_of(atom) for atom in structure.atoms}
        if self.reference and named & {"Rw", "Rl"}:
            raise ValueError("the formula names the reference itself (Rw, Rl); remove reference: true.")
        if self.gamma and not named & {"Mw", "Ml"}:
            raise ValueError("gamma has no effect here: the formula names neither Mw nor Ml, as that of SimPO does.")

    @property
    def structure(self) -> Structure:
        if self.formula is None:
            return PRESETS[self.preset or "CPO"].structure
        return compiled(self.formula, self.condition, self.additive)

    @property
    def needs_reference(self) -> bool:
        return self.reference or any(base_of(atom) in ("Rw", "Rl") for atom in self.structure.atoms)

    @property
    def margin_scale(self) -> None:
        return None  # what a nat counts depends on where the policy is

    @property
    def own_scales(self) -> bool:
        return self.needs_reference and self.probability == "per_token"

    def terms(self, policy: Scores, reference: Scores | None) -> Terms:
        from torch.nn.functional import logsigmoid

        log_p = self.log_probs(policy, reference)
        margin = rho(self.structure, log_p)
        if self.reference:
            margin = margin + log_p["Rl"] - log_p["Rw"]
        if self.link == "logistic":
            losses = -logsigmoid(self.beta * margin)
        elif self.link == "squared":
            losses = (margin - 1 / (2 * self.beta)) ** 2
        else:
            losses = (self.beta - margin).clamp(min=0)
        return Terms((Term(losses),), self._metrics(log_p, policy, reference))

    def log_probs(self, policy: Scores, reference: Scores | None) -> dict[str, Tensor]:
        """Log-probs of the atoms, [B] each."""
        whole = self.probability == "sequence"
        found = {
            atom: scores.sum(branch) if whole else scores.mean(branch)
            for atom, scores, branch in (
                ("W", policy, "chosen"),
                ("L", policy, "rejected"),
                ("Rw", reference, "chosen"),
                ("Rl", reference, "rejected"),
            )
            if scores is not None
        }
        made_up = {"Mw": 0.0, "Ml": -self.gamma / self.beta}
        return found | {atom: found["W"].new_full((), value) for atom, value in made_up.items()}

    def _metrics(
        self, log_p: Mapping[str, Tensor], policy: Scores, reference: Scores | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """An answer's reward is beta times the log of its probability, over the reference's where there is one."""
        chosen, rejected = self.beta * log_p["W"], self.beta * log_p["L"]
        if not self.needs_reference:
            return pair_metrics(chosen, rejected, policy)
        assert reference is not None
        ratios = [policy.sum(branch) - reference.sum(branch) for branch in ("chosen", "rejected")]
        gap = ratios[0] - ratios[1] if self.own_scales else None
        return pair_metrics(chosen - self.beta * log_p["Rw"], rejected - self.beta * log_p["Rl"], policy, gap=gap)


def rho(structure: Structure, log_p: Mapping[str, Tensor]) -> Tensor:
    """Log of the weight of the top over that of the bottom, [B], from log-probs [B] of the atoms."""
    import torch

    atoms = [log_p[base_of(atom)] for atom in structure.atoms]
    literals = [(value, log1mexp(value, NEAREST_TO_CERTAIN)) for value in atoms]
    zero = 0 * torch.stack(torch.broadcast_tensors(*atoms)).sum(0)  # gives its shape, and a gradient where all cancels
    return zero + _log_weight(structure.top, literals) - _log_weight(structure.bottom, literals)


def _log_weight(rows: frozenset[Row], literals: list[tuple[Tensor, Tensor]]) -> Tensor | float:
    """Log of the summed weights of rows, given log p and log (1 - p) of each atom.

    Atom by atom instead of row by row, and past atoms that make no difference: the weight of all rows is then 1
    exactly, and CPO is log w - log l without a sum of parts that only cancel.
    """
    import torch

    if len(rows) == 2 ** len(literals):
        return 0.0
    sides = [frozenset(row[1:] for row in rows if row[0] is value) for value in (True, False)]
    if sides[0] == sides[1]:
        return _log_weight(sides[0], literals[1:])
    parts = [first + _log_weight(side, literals[1:]) for first, side in zip(literals[0], sides, strict=True) if side]
    return reduce(torch.logaddexp, parts)
