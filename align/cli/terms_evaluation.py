"""Words of ``align eval RUN --suite`` and ``align eval pairwise``."""

from __future__ import annotations

from align.cli.terms import Explanation
from align.report.thresholds import FEW_PAIRS

EVALUATION: dict[str, Explanation] = {
    "win_rate": Explanation(
        "How often a judge prefers one model's answers to another's, ties as half.",
        "align eval pairwise: an answer wins where the judge prefers it in both orders of showing the two (arXiv "
        "2306.05685), all else is a tie; from 0 to 1, Wilson's interval, 95 %. align eval alpaca: mean preference in "
        "one order each, in percent.",
        f"not shown: more prompts. With fewer than {FEW_PAIRS} nothing is said. Read it beside the win rate by length "
        "alone: a judge that likes long answers gives as much to a model that writes more.",
    ),
    "agreement": Explanation(
        "How often a judge names the same winner in both orders of showing two answers.",
        "Share of pairs of different answers for which both orders name the same one; Wilson's interval, 95 %. Tossing "
        "a coin gives 0.5.",
        "Near 0.5 the judge says little: take a stronger one.",
    ),
    "position_bias": Explanation(
        "How much likelier a judge prefers what it is shown first.",
        "align eval pairwise: over pairs in both orders the mean of P(the first shown is better) minus 1/2. align eval "
        "alpaca: the mean preference for the model where it was shown first less that where it was shown second, in "
        "points.",
        "Both orders are asked, so it makes ties of close pairs and favours no model. Far from 0, take another judge.",
    ),
    "accuracy without reference": Explanation(
        "How often a model itself gives the chosen answer of a held-out pair more probability.",
        "Share of pairs with log pi(chosen) above log pi(rejected), summed over tokens, end included, ties as half. "
        "accuracy takes off the same difference under the starting model, margin is the mean of what is left, in nats.",
        "Short answers are likelier, so compare it with that of the longest and the shortest answer; the notes do.",
    ),
    "trial": Explanation(
        "A measurement on a few rows (--limit), which is no result.",
        "The first N rows of each set. It is marked everywhere and stands in no report, card or comparison.",
        "Leave out --limit.",
    ),
}
