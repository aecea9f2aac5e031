"""One worked case or more for every objective, on the inputs of ``worked``; those of pairs are in ``pair_cases``."""

from __future__ import annotations

from objectives.pair_cases import PAIR_CASES
from objectives.worked import KL_FORWARD, KL_REVERSE, Case

from align.objectives import (
    DPO,
    FLAT,
    IDK,
    INPO,
    IPO,
    KL,
    KTO,
    NLL,
    NPO,
    RMU,
    RPO,
    WGA,
    FlexDPO,
    GradAscent,
    Hinge,
    HyPO,
    IdkDPO,
    KTOForget,
    Logic,
    SampledKL,
    SimNPO,
    SPPOHard,
    SuperHF,
    WeightedSum,
)

CASES: dict[str, tuple[Case, ...]] = {
    **PAIR_CASES,
    "flat": (
        Case(FLAT(), (-0.0666461468, 0.1853911285), 0.0593724908),
        Case(FLAT("kl"), (-0.0273922378, 0.5063831553), 0.2394954587),
        Case(FLAT("jensen_shannon"), (-0.0213316357, 0.2510250002), 0.1148466823),
        Case(FLAT("pearson"), (-0.1265521508, 0.4984527467), 0.1859502979),
        # W(e^(1 - v)) by scipy.special.lambertw
        Case(FLAT("jeffrey"), (-0.1216275607, 0.5107639108), 0.1945681750),
        # sums over 5 - 1: P = (0.4383027210, 0.0338338208) and (0.2074152050, 0.5563943592)
        Case(FLAT("kl", "padded", padded_length=5), (0.0143704933, 0.6078846177), 0.3111275555),
        # g* and f* of the means 0.2360682709 and 0.3819047821
        Case(FLAT("kl", "padded", padded_length=5, per="batch"), (0.3029018101, 0.3029018101), 0.3029018101),
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
    "grad_ascent": (
        Case(GradAscent(), (-2.0, -2.5), -0.75, (0.0, 0.0), (1.0, 1.0)),  # 4.5 nats over six tokens
        Case(GradAscent("seq_mean"), (-1.0, -0.625), -0.8125, (0.0, 0.0), (0.5, 0.25)),
        Case(GradAscent("sum"), (-2.0, -2.5), -2.25, (0.0, 0.0), (1.0, 1.0)),
    ),
    "hinge": (
        Case(Hinge(beta=0.5), (0.375, 1.25), 0.8125, (0.5, 0.5), (0.5, 0.5)),
        # the first margin, 1.25, is beyond 1 and stops pulling
        Case(Hinge(beta=1.0), (0.0, 1.5), 0.75, (0.0, 1.0), (0.0, 1.0)),
    ),
    "hypo": (
        # DPO at beta 0.5, plus a quarter of sampled_kl as below
        Case(
            HyPO(beta=0.5, kl_weight=0.25),
            (0.3037006783, 1.0759394199),
            0.6898200491,
            (0.1743225677, 0.2810882504),
            (0.1743225677, 0.2810882504),
        ),
        Case(
            HyPO(beta=0.5, label_smoothing=0.1, kl_weight=0.0),
            (0.4912006783, 0.8009394199),
            0.6460700491,
            (0.1243225677, 0.2310882504),
            (0.1243225677, 0.2310882504),
        ),
    ),
    "idk": (
        # 3.75 nats over four alternate tokens and 1.75 over three retained ones: 5.5 / 7, not 3.75 / 4 + 1.75 / 3
        Case(IDK(), (2.75, 2.75), 0.7857142857, (1.0, 1.0), (0.0, 0.0)),
    ),
    "idk_dpo": (
        # four times DPO at beta 0.5
        Case(
            IdkDPO(beta=0.5),
            (1.7148027131, 3.3037576795),
            2.5092801963,
            (0.6972902707, 1.1243530018),
            (0.6972902707, 1.1243530018),
        ),
    ),
    "inpo": (
        # chosen 0.375 and -0.3125 above the mix, rejected -0.875 and 0.75: h = (1.25, -1.0625), aimed at 2
        Case(INPO(eta=0.25, tau_ratio=0.25), (0.5625, 9.37890625), 4.970703125, (1.5, 6.125), (1.5, 6.125)),
        # the initial policy alone, h = (1.25, -0.5), and the previous one alone, h = (1.25, -1.25)
        Case(INPO(eta=0.25, tau_ratio=1.0), (0.5625, 6.25), 3.40625, (1.5, 5.0), (1.5, 5.0)),
        Case(INPO(eta=0.25, tau_ratio=0.0), (0.5625, 10.5625), 5.5625, (1.5, 6.5), (1.5, 6.5)),
        # h = (1.25, -1), aimed at 100
        Case(INPO(), (9751.5625, 10201.0), 9976.28125, (197.5, 202.0), (197.5, 202.0)),
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
    # z = (-0.5 + 1) / 2 = 0.25: 1 - sigmoid(0.5 (0.75 - 0.25)) and 1 - sigmoid(0.5 (0.25 + 0.5)) of the first two
    # answers; here an example has both a desirable and an undesirable answer
    "kto": (
        Case(
            KTO(beta=0.5),
            (0.8451568992, 1.0614572266),
            0.9533070629,
            (0.1230670414, 0.1207064506),
            (0.1207064506, 0.1245129875),
        ),
        Case(
            KTO(beta=1.0, desirable_weight=1.5, undesirable_weight=0.5),
            (0.7267216536, 1.2376797983),
            0.9822007260,
            (0.3525055683, 0.3268424906),
            (0.1089474969, 0.1230670414),
        ),
        # z = 0
        Case(
            KTO("apo_zero_unpaired", beta=1.0, desirable_weight=1.5, undesirable_weight=0.5),
            (0.6700022856, 1.1836889968),
            0.9268456412,
            (0.3268424906, 0.3525055683),
            (0.1175018561, 0.1250000000),
        ),
    ),
    "kto_forget": (
        # z = (0.75 - 0.5) / 2, arguments 0.375 and 0.125
        Case(KTOForget(beta=0.5), (3.0924930566, 3.5303961413), 3.3114445989, (0.0, 0.0), (0.8146668001, 0.9375812533)),
        Case(
            KTOForget("sigmoid", beta=0.5),
            (-1.3706663998, -1.1248374935),
            -1.2477519467,
            (0.0, 0.0),
            (0.4828258025, 0.4980519500),
        ),
    ),
    # probabilities by token: w = exp(-1.75/3), exp(-2) and l = exp(-1), exp(-2.5/4); of whole answers in the third
    "logic": (
        # CPO: m = (-1.75/3 + 1, -2 + 0.625) = (5/12, -1.375)
        Case(
            Logic(),
            (0.5063600460, 1.6004126516),
            1.0533863488,
            (0.1324382207, 0.7981867777),
            (0.1986573310, 0.1995466944),
        ),
        # m = 2 log w (1 - l) / (l (1 - w))
        Case(
            Logic(preset="ORPO", beta=2.0),
            (0.1926458637, 4.0100327857),
            2.1013393247,
            (0.2643136191, 2.2710934776),
            (0.2772034428, 1.0563650830),
        ),
        # m = (log (w l + 1 - l) / (l (1 - w)) + log r_l - log r_w) / 2, with log r_l - log r_w = (1, -1)
        Case(
            Logic(preset="unCPO", beta=0.5, reference=True, probability="sequence"),
            (0.1949145266, 0.3754944622),
            0.2852044944,
            (0.0209681397, 0.0263706442),
            (0.0996951730, 0.1684835249),
        ),
        # rho = log w / (l (1 - w)), aimed at 2
        Case(
            Logic(preset="cCPO", link="squared", beta=0.25),
            (0.5879951498, 10.4302292331),
            5.5091121915,
            (1.1566657554, 7.4701476295),
            (0.7668084180, 1.6147932711),
        ),
        # rho = (0.75/3 + 0.5/2, -0.5/1 - 0/4) = (0.5, -0.5), beyond 0.4 and below it
        Case(Logic(preset="DPO", link="hinge", beta=0.4), (0.0, 0.9), 0.45, (0.0, 1.0), (0.0, 0.25)),
        # as simpo below
        Case(
            Logic(preset="SimPO", beta=2.0, gamma=0.5),
            (0.5403055747, 3.2880413717),
            1.9141734732,
            (0.2782865290, 1.9253462253),
            (0.4174297935, 0.4813365563),
        ),
        # the policy gives the chosen answer where it or the reference does: w / (r_w (1 - w))
        Case(
            Logic(formula="W", condition="W | Rw"),
            (0.2958009559, 0.8860752516),
            0.5909381037,
            (0.1931258472, 0.6797193738),
            (0.0, 0.0),
        ),
    ),
    "nll": (
        # prompts too: 5.5 nats over six tokens
        Case(NLL(branch="retain", positions="all"), (4.0, 1.5), 0.9166666667),
        Case(NLL(), (1.75, 2.0), 0.9375, (1.0, 1.0), (0.0, 0.0)),  # 3.75 nats over four tokens
        Case(NLL(norm="sum"), (1.75, 2.0), 1.875, (1.0, 1.0), (0.0, 0.0)),
        Case(NLL(norm="seq_mean"), (0.5833333333, 2.0), 1.2916666667, (0.3333333333, 1.0), (0.0, 0.0)),
        # imitation of the rejected answer pulls it up, so its d_l is negative
        Case(NLL(branch="rejected", norm="sum"), (2.0, 2.5), 2.25, (0.0, 0.0), (-1.0, -1.0)),
    ),
    "npo": (
        # 4 log(1 + e^x) at x = 0.5 (-0.5, 0)
        Case(NPO(beta=0.5), (2.3037576795, 2.7725887222), 2.5381732009, (0.0, 0.0), (0.8756469982, 1.0)),
    ),
    "rmu": (
        # hidden states are of width 1 here and equal the log-probs, so u = 1: (4 + 1) / 2 and
        # (0.5625 + 1.5625 + 2.25 + 1) / 4 from steering, 0.25 and (0 + 0.0625) / 2 from the reference
        Case(RMU(layer=0, steering=0.5), (2.75, 1.375), 2.0625),
        Case(RMU(layer=0, steering=0.5, retain_weight=2.0), (3.0, 1.40625), 2.203125),
        Case(RMU(layer=0, steering=0.5, retain_weight=0.0), (2.5, 1.34375), 1.921875),
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
    "sampled_kl": (
        # the value is the log-ratio itself, whichever estimator gives the gradient (tests/objectives/test_online.py)
        Case(SampledKL(), (-0.5, 1.0), 0.25),
        Case(SampledKL("score", baseline="leave_one_out"), (-0.5, 1.0), 0.25),
        Case(SampledKL("score", clip=0.75), (-0.5, 1.0), 0.25),
        Case(SampledKL("k2"), (-0.5, 1.0), 0.25),
    ),
    "simnpo": (
        # log(1 + e^x) at x = 2 (-1 + 0.25, -0.625 + 0.25)
        Case(
            SimNPO(beta=2.0, delta=0.25),
            (0.2014132780, 0.3868710061),
            0.2941421420,
            (0.0, 0.0),
            (0.1824255238, 0.1604106504),
        ),
    ),
    "sppo_hard": (
        # targets 1 and -1: 0.25^2 + 0.5^2 and 1.5^2 + 1^2
        Case(SPPOHard(beta=0.5), (0.3125, 3.25), 1.78125, (0.5, 3.0), (1.0, 2.0)),
    ),
    "superhf": (
        # 4 nats over five tokens; the KL is the same at every token, so its mean over a sequence is, too
        Case(SuperHF(kl_weight=0.5), (2.0 + KL_FORWARD / 2, 2.0 + KL_FORWARD / 2), 0.8 + KL_FORWARD / 2),
        Case(SuperHF(0.5, released=True), (2.0 + KL_FORWARD / 2, 2.0 + KL_FORWARD / 2), 0.8 + KL_FORWARD),
        Case(SuperHF(kl_weight=0.0), (2.0, 2.0), 0.8),
    ),
    "wga": (
        # such as -1.5 e^-1.5 - 0.5 e^-0.5; six tokens
        Case(WGA(), (-0.6379605701, -1.2201198814), -0.3096800752),
        Case(WGA(beta=2.0), (-0.2586203231, -0.6382552889), -0.1494792687),
        Case(WGA(beta=0.0), (-2.0, -2.5), -0.75),
    ),
}

SUMS = (
    # GradDiff, and NPO with both kinds of retain term
    Case(
        WeightedSum(((GradAscent(), 1.0), (NLL(branch="retain"), 2.0))),
        (0.0, -1.0),
        -0.75 + 2 * 1.75 / 3,
        (0.0, 0.0),
        (1.0, 1.0),
    ),
    Case(
        WeightedSum(((NPO(beta=0.5), 1.0), (KL(branch="retain", positions="all"), 3.0), (IDK(), 0.5))),
        (2.3037576795 + 6 * KL_FORWARD + 1.375, 2.7725887222 + 12 * KL_FORWARD + 1.375),
        2.5381732009 + 3 * KL_FORWARD + 0.3928571429,
        (0.5, 0.5),
        (0.8756469982, 1.0),
    ),
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
