"""What the words of a reward model's probes mean; a part of what ``align explain`` knows."""

from __future__ import annotations

from align.cli.terms import Explanation
from align.probes.consistency_verdict import ADDITIVE

CONSISTENCY: dict[str, Explanation] = {
    "C_res": Explanation(
        "One instruction, two answers: how often its own answer scores higher than that of a similar instruction.",
        "R(1,1) > R(1,2) and, on the other side, R(2,2) > R(2,1), over contrast pairs (arXiv 2309.16155). both: every "
        "pair once, as the mean of its two sides; query: the first side alone, as the released scripts do. With > ties "
        "are wrong, with >= right. Intervals are Wilson's, 95 %; chance is 0.5.",
        "Near 0.5 on both sides the model does not read the instruction when it ranks answers. Train on pairs whose "
        "rejected answer belongs to a similar instruction.",
    ),
    "C_ins": Explanation(
        "One answer, two instructions: how often it scores higher under its own instruction than under a similar one.",
        "R(1,1) > R(2,1) and, on the other side, R(2,2) > R(1,2); otherwise as C_res. A rule that looks at the answer "
        "alone ties everywhere: 0 with >, 1 with >=.",
        "See align explain C_res.",
    ),
    "additive": Explanation(
        "A reward that is a(instruction) + b(answer): it never asks whether the answer fits.",
        "The interaction R(1,1) - R(1,2) - R(2,1) + R(2,2) is set beside those of instructions and answers: "
        "its share of their sum of squares is 0 for an additive reward, 1/3 on average for random scores. Called so "
        f"below {ADDITIVE:.0%} where neither C_res nor C_ins is above 0.5. With both sides counted such a reward gets "
        "exactly 0.5 but for ties; the query side bounds it only as far as pairs stand in both orders.",
        "A figure of the query side that an additive reward may reach is no sign of reading.",
    ),
}
