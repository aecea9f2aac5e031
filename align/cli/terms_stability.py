"""What the words of ``align probe stability`` mean; ``align explain`` looks here after ``align.cli.terms``."""

from __future__ import annotations

from align.cli.terms import Explanation
from align.probes.answer_order import BIAS
from align.probes.stability import FEW, GAP, PULL, SAME, STABLE

STABILITY: dict[str, Explanation] = {
    "stability": Explanation(
        "Whether a reward model orders two answers the same after changes that should not matter.",
        "Share of pairs that keep their order (kept), among those without a tie before or after, with Wilson's "
        f'interval. "stable" from {STABLE:g} of {FEW} pairs or more, "unstable" where the whole interval lies below, '
        'otherwise "unclear".',
        "unstable: train on rewritten answers, too. unclear: more pairs (--rows). Look at the null models first.",
    ),
    "shift": Explanation(
        "By how much a change moves the margin between chosen and rejected.",
        "Mean change of chosen minus rejected, in standard deviations of all scores before the change. Where only the "
        'rejected answer is changed, minus this is what its score gained: "raised" or "lowered" from '
        f'{PULL:g} on, where the interval (bootstrap over pairs) does not reach 0, otherwise "no pull".',
        "raised by padding, bold or bullets: a policy trained on this reward will learn to write so.",
    ),
    "length-biased": Explanation(
        "The reward model is right far more often where the chosen answer is the longer (or the shorter) one.",
        "Accuracy on pairs whose chosen answer has more characters, minus accuracy on those where it has fewer: a gap "
        f"of at least {GAP:g} either way whose interval (Newcombe) does not reach 0.",
        "Balance the training pairs by length, and hold the length of what is trained on this reward in view.",
    ),
    "null model": Explanation(
        "A judge that reads nothing: longest scores an answer by its characters, shortest by minus that.",
        "Both go through every probe and benchmark; their figures stand beside the judge's. A figure is not above that "
        "of a null model where its 95 % interval reaches the better one's (marked ! in a benchmark's table).",
        "Such a figure says nothing about what the judge knows. A stability probe that they pass shows that a weakness "
        "is absent, not that the model reads. In RM-Bench richer styles are longer, so one null model does well on "
        "easy and the other on hard: read the domain's mean.",
    ),
    "answer order": Explanation(
        "Whether the verdict of a judge that compares depends on which answer it is shown first (--pair).",
        "Each pair is asked in both orders. Share of pairs whose verdict changes, among those with a verdict in both, "
        f'with Wilson\'s interval: "stable" up to {1 - STABLE:.2f}, "unstable" where the whole interval lies above, '
        f'otherwise "unclear". Position bias is the mean of P(first shown better) - 1/2; from {BIAS:g} either way, if '
        "its interval (bootstrap over pairs) does not reach 0, the judge prefers a place.",
        "Ask in both orders and average, as align does wherever such a judge is used; or take another judge.",
    ),
    "order of rows": Explanation(
        "Whether a score depends on the rows that are scored beside it; it must not.",
        "Largest change of a score when all rows are asked in reverse, or the first ones one by one, in standard "
        f"deviations of the scores. Up to {SAME:g} is rounding.",
        "More: the scores are padded or packed in a way that this model does not bear. Weights in float32 (--dtype).",
    ),
}
