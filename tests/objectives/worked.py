"""What the worked cases of objectives are about: two pairs with log-probs that add up in the head, numbers as literals.

Sums: chosen -1.75 and -2 (reference -2.5 and -1.5), rejected -2 and -2.5 (reference -1.5 and -2.5), so the log-ratios
are d_w = (0.75, -0.5), d_l = (-0.5, 0) and d_w - d_l = (1.25, -0.5); lengths are (3, 1) and (2, 4). For unlearning the
same two rows have forget answers with the rejected ones' numbers and alternate answers with the chosen ones'; retained
answers, of lengths (1, 2), sum to -1 and -0.75 (reference -0.5 and -1), with their prompts to -4 and -1.5; the chosen
ones with their prompts to -3 and -4, on eight tokens. ``loss`` is
what an optimizer step over just these pairs has: each term divided by its own unit. Samples, one of each prompt and of
lengths (2, 3), sum to -2 and -2 (reference -1.5 and -3), so D = (-0.5, 1), by token (0.5, -1) and (0.25, 0.5, 0.25);
survivors and mismatched answers are the same. Desirable and undesirable answers have the numbers of chosen and rejected
ones. Anchors: ``initial`` is the reference, ``previous`` has log-ratios (0.25, -0.25) and (-1, 1).

``d_w`` and ``d_l`` are the pulls:
minus the gradient by the chosen (or alternate) sum, and the gradient by the rejected (or forget) sum, of the sum over
pairs; None where tokens of an answer are not pulled alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.objectives import Objective

Rows = tuple[tuple[float, ...], tuple[float, ...]]


def _all_branches(
    chosen: Rows, rejected: Rows, chosen_all: Rows, retain: Rows, retain_all: Rows, sample: Rows
) -> dict[str, Rows]:
    pair = {"chosen": chosen, "rejected": rejected, "chosen_all": chosen_all}
    forgetting = {"alternate": chosen, "forget": rejected, "retain": retain, "retain_all": retain_all}
    labelled = {"desirable": chosen, "undesirable": rejected, "mismatch": sample}
    return {**pair, **forgetting, **labelled, "sample": sample, "survivor": sample}


POLICY = _all_branches(
    ((-0.5, -1.0, -0.25), (-2.0,)),
    ((-1.5, -0.5), (-0.25, -0.75, -1.0, -0.5)),
    ((-1.25, -0.5, -1.0, -0.25), (-1.0, -0.5, -0.5, -2.0)),
    ((-1.0,), (-0.5, -0.25)),
    ((-3.0, -1.0), (-0.25, -0.5, -0.5, -0.25)),
    ((-0.5, -1.5), (-1.0, -0.25, -0.75)),
)
REFERENCE = _all_branches(
    ((-0.75, -1.25, -0.5), (-1.5,)),
    ((-1.0, -0.5), (-0.5, -0.5, -1.25, -0.25)),
    ((-1.0, -0.75, -1.25, -0.5), (-1.0, -0.5, -0.5, -1.5)),
    ((-0.5,), (-0.5, -0.5)),
    ((-2.0, -0.5), (-0.25, -0.25, -0.5, -0.5)),
    ((-1.0, -0.5), (-1.25, -0.75, -1.0)),
)
ANCHORS = {
    "initial": {"chosen": (-2.5, -1.5), "rejected": (-1.5, -2.5)},
    "previous": {"chosen": (-2.0, -1.75), "rejected": (-1.0, -3.5)},
}
# Over two words, the policy (1/2, 1/2) and the reference (1/4, 3/4) at every token: by hand, ln 3 / 4 * 3 - ln 2 and
# ln 2 - ln 3 / 2.
KL_FORWARD, KL_REVERSE = 0.13081203594113697, 0.14384103622589042


@dataclass(frozen=True)
class Case:
    """An objective with the loss of each pair, that of the step, and the pulls on both sides (``w`` and ``l``)."""

    objective: Objective
    per_pair: tuple[float, float]
    loss: float
    d_w: tuple[float, float] | None = None
    d_l: tuple[float, float] | None = None

    @property
    def sides(self) -> tuple[str, str]:
        if "desirable" in self.objective.branches:
            return "desirable", "undesirable"
        pair = {"chosen", "rejected"} & set(self.objective.branches)
        return ("chosen", "rejected") if pair else ("alternate", "forget")
