"""One worked case or more for every objective: two pairs with log-probs that add up in the head, numbers as literals.

Sums: chosen -1.75 and -2 (reference -2.5 and -1.5), rejected -2 and -2.5 (reference -1.5 and -2.5), so the log-ratios
are d_w = (0.75, -0.5), d_l = (-0.5, 0) and d_w - d_l = (1.25, -0.5); lengths are (3, 1) and (2, 4). ``loss`` is what an
optimizer step over just these pairs has: each term divided by its own unit. ``d_w`` and ``d_l`` are the pulls: minus
the gradient by the chosen sum, and the gradient by the rejected sum, of the sum over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.objectives import DPO, IPO, KL, NLL, RPO, FlexDPO, Hinge, Objective, SimPO, WeightedSum

POLICY = {
    "chosen": ((-0.5, -1.0, -0.25), (-2.0,)),
    "rejected": ((-1.5, -0.5), (-0.25, -0.75, -1.0, -0.5)),
}
REFERENCE = {
    "chosen": ((-0.75, -1.25, -0.5), (-1.5,)),
    "rejected": ((-1.0, -0.5), (-0.5, -0.5, -1.25, -0.25)),
}
# Over two words, the policy (1/2, 1/2) and the reference (1/4, 3/4) at every token: by hand, ln 3 / 4 * 3 - ln 2 and
# ln 2 - ln 3 / 2.
KL_FORWARD, KL_REVERSE = 0.13081203594113697, 0.14384103622589042


@dataclass(frozen=True)
class Case:
    """An objective with the loss of each pair, that of the step, and the pulls on both sides."""

    objective: Objective
    per_pair: tuple[float, float]
    loss: float
    d_w: tuple[float, float] | None = None
    d_l: tuple[float, float] | None = None


CASES: dict[str, tuple[Case, ...]] = {
    "dpo": (
        # m = (0.625, -0.25)
        Case(
            DPO(beta=0.5),
            (0.4287006783, 0.8259394199),
            0.6273200491,
            (0.1743225677, 0.2810882504),
            (0.1743225677, 0.2810882504),
        ),
        # a tenth of the labels flipped: 0.9 (0.4287006783) + 0.1 (0.4287006783 + 0.625), and likewise
        Case(
            DPO(beta=0.5, label_smoothing=0.1),
            (0.4912006783, 0.8009394199),
            0.6460700491,
            (0.1243225677, 0.2310882504),
            (0.1243225677, 0.2310882504),
        ),
    ),
    "flex_dpo": (
        # m = 0.5 (0.75, -0.5) - 0.25 (-0.5, 0) = (0.5, -0.25)
        Case(
            FlexDPO(beta_plus=0.5, beta_minus=0.25),
            (0.4740769842, 0.8259394199),
            0.6500082020,
            (0.1887703344, 0.2810882504),
            (0.0943851672, 0.1405441252),
        ),
        # beta_minus 0: the rejected answer is left alone; m = (0.375, -0.25)
        Case(
            FlexDPO(beta_plus=0.5, beta_minus=0.0),
            (0.5231232641, 0.8259394199),
            0.6745313420,
            (0.2036667000, 0.2810882504),
            (0.0, 0.0),
        ),
    ),
    "hinge": (
        Case(Hinge(beta=0.5), (0.375, 1.25), 0.8125, (0.5, 0.5), (0.5, 0.5)),
        # the first margin, 1.25, is beyond 1 and stops pulling
        Case(Hinge(beta=1.0), (0.0, 1.5), 0.75, (0.0, 1.0), (0.0, 1.0)),
    ),
    "ipo": (
        # h = (0.75/3 + 0.5/2, -0.5/1 - 0/4) = (0.5, -0.5), aimed at 2
        Case(IPO(tau=0.25), (2.25, 6.25), 4.25, (1.0, 5.0), (1.5, 1.25)),
        # h = (1.25, -0.5), aimed at 2
        Case(IPO(tau=0.25, reduction="sum"), (0.5625, 6.25), 3.40625, (1.5, 5.0), (1.5, 5.0)),
    ),
    "kl": (
        Case(KL(branch="chosen"), (3 * KL_FORWARD, KL_FORWARD), KL_FORWARD),
        Case(KL(branch="rejected", direction="reverse", norm="sum"), (2 * KL_REVERSE, 4 * KL_REVERSE), 3 * KL_REVERSE),
        Case(KL(branch="chosen", direction="reverse", norm="seq_mean"), (KL_REVERSE, KL_REVERSE), KL_REVERSE),
    ),
    "nll": (
        Case(NLL(), (1.75, 2.0), 0.9375, (1.0, 1.0), (0.0, 0.0)),  # 3.75 nats over four tokens
        Case(NLL(norm="sum"), (1.75, 2.0), 1.875, (1.0, 1.0), (0.0, 0.0)),
        Case(NLL(norm="seq_mean"), (0.5833333333, 2.0), 1.2916666667, (0.3333333333, 1.0), (0.0, 0.0)),
        # imitation of the rejected answer pulls it up, so its d_l is negative
        Case(NLL(branch="rejected", norm="sum"), (2.0, 2.5), 2.25, (0.0, 0.0), (-1.0, -1.0)),
    ),
    "rpo": (
        # DPO at beta 0.5 as above, plus 0.2 (1.75 / 3, 2)
        Case(
            RPO(preset="openrlhf"),
            (0.5453673449, 1.2259394199),
            0.8856533824,
            (0.2409892343, 0.4810882504),
            (0.1743225677, 0.2810882504),
        ),
        # DPO at beta 0.01, plus 0.005 * 0.01 (1.75, 2)
        Case(
            RPO(preset="handbook"),
            (0.6870042117, 0.6957503056),
            0.6913772586,
            (0.0050187504, 0.0050625000),
            (0.0049687504, 0.0050125000),
        ),
        # own numbers take the place of the released ones: DPO at beta 0.5, plus 0.4 * 0.5 (1.75, 2)
        Case(
            RPO(preset="handbook", beta=0.5, eta=0.4),
            (0.7787006783, 1.2259394199),
            1.0023200491,
            (0.3743225677, 0.4810882504),
            (0.1743225677, 0.2810882504),
        ),
    ),
    "simpo": (
        # m = 2 (-1.75/3 + 2/2, -2 + 2.5/4) - 0.5 = (1/3, -3.25)
        Case(
            SimPO(beta=2.0, gamma=0.5),
            (0.5403055747, 3.2880413717),
            1.9141734732,
            (0.2782865290, 1.9253462253),
            (0.4174297935, 0.4813365563),
        ),
    ),
}

SUMS = (
    Case(
        WeightedSum(((DPO(beta=0.5), 1.0), (NLL(norm="sum"), 0.1))),
        (0.4287006783 + 0.175, 0.8259394199 + 0.2),
        0.6273200491 + 0.1875,
        (0.2743225677, 0.3810882504),
        (0.1743225677, 0.2810882504),
    ),
    # units of its own for every part: pairs, and four chosen tokens
    Case(
        WeightedSum(((Hinge(beta=0.5), 2.0), (NLL(), 0.5), (KL(), 3.0))),
        (0.75 + 0.875 + 9 * KL_FORWARD, 2.5 + 1.0 + 3 * KL_FORWARD),
        2 * 0.8125 + 0.5 * 0.9375 + 3 * KL_FORWARD,
        (1.5, 1.5),
        (1.0, 1.0),
    ),
)
