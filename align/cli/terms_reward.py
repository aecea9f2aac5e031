"""What the words of a reward model's run and of its benchmarks mean; a part of what ``align explain`` knows."""

from __future__ import annotations

from align.cli.terms import Explanation
from align.report.thresholds import FEW_PAIRS, MISCALIBRATED, OVERFIT, WILD_SCORES

REWARD: dict[str, Explanation] = {
    "ranks": Explanation(
        "Whether a reward model ranks held-out pairs better than chance and better than length alone.",
        "Share of held-out pairs whose chosen answer scores higher, equal scores as half, with Wilson's 95 % interval; "
        'pairs labelled as ties do not count. "yes" only if the whole interval lies above 0.5 and above what the '
        'longer (or the shorter) answer of each pair would score. "reversed" if it lies below 0.5, "worse" if it lies '
        f'below the accuracy at the start, "too few to say" with fewer than {FEW_PAIRS} pairs, otherwise "not shown".',
        "Not above chance: more pairs, a larger learning rate or more steps. Not above length alone: pairs whose "
        "chosen answers are as often the shorter ones. Reversed: chosen and rejected may be swapped.",
    ),
    "confidence": Explanation(
        "Whether a reward model is right as often as it is sure.",
        "sigmoid(|margin|) is its confidence in the answer that it prefers. Mean confidence minus accuracy, over "
        f'held-out pairs: "overconfident" from +{MISCALIBRATED:g}, "underconfident" from -{MISCALIBRATED:g}, if the '
        'confidence also lies outside of the accuracy\'s interval; otherwise "fits". The expected calibration error is '
        "the mean over bins of the size of this gap, weighted by pairs.",
        "Only the order of scores counts for best-of-n; losses that read margins as probabilities need confidence. "
        "Overconfident: fewer steps, or divide the scores by a number fitted on held-out pairs.",
    ),
    "scores": Explanation(
        "Whether the scores of a reward model stay near 0.",
        "The loss sees the difference of two scores alone, so their centre may drift. The mean of chosen and rejected "
        f'scores in the last five log steps: "run away" where it is more than {WILD_SCORES:g} margins from 0 (a margin '
        "below 1 counts as 1).",
        "Set objective.center, such as 0.01. Scores far from 0 lose digits in 16 bits, and their level means nothing.",
    ),
    "overfit": Explanation(
        "Whether a reward model learns its training pairs by heart.",
        "Accuracy on training pairs in the last five log steps minus that on held-out pairs: "
        f'"yes" from {OVERFIT:g}, if it also lies above the held-out interval.',
        "One epoch is usual for reward models. Fewer epochs, a smaller learning rate, or more pairs.",
    ),
}
