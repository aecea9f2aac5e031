"""What the words of ``align probe stability`` mean; ``align explain`` looks here after ``align.cli.terms``."""

from __future__ import annotations

from align.cli.terms import Explanation
from align.probes.stability import GAP, PULL, SAME, STABLE

STABILITY: dict[str, Explanation] = {
    "stability": Explanation(
        "Whether a reward model orders two answers the same after changes that should not matter.",
        "Share of pairs that keep their order (kept), among those without a tie before or after, with Wilson's "
        f'interval. "stable" from {STABLE:g}, "unstable" where the whole interval lies below it, otherwise "unclear".',
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
        "A reward model that reads nothing: longest scores an answer by its characters, shortest by minus that.",
        "Both go through every probe. Beside each share stands theirs, and below the table which probes they pass.",
        "A probe that they pass shows that a weakness is absent, not that the model reads what an answer says.",
    ),
    "order of rows": Explanation(
        "Whether a score depends on the rows that are scored beside it; it must not.",
        "Largest change of a score when all rows are asked in reverse, or the first ones one by one, in standard "
        f"deviations of the scores. Up to {SAME:g} is rounding.",
        "More: the scores are padded or packed in a way that this model does not bear. Weights in float32 (--dtype).",
    ),
}
