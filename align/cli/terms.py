"""What the words of a run's lines and verdict mean; ``align explain NAME`` looks here after the objectives."""

from __future__ import annotations

from typing import NamedTuple

from align.report.thresholds import (
    ALIKE,
    CHOSEN_DROP_NATS,
    CHOSEN_DROP_NATS_PER_TOKEN,
    DRIFT_NATS_PER_TOKEN,
    FEW_PAIRS,
    LENGTH_CHANGE,
    MAJORITY,
    REJECTED_DROP_NATS_PER_TOKEN,
    SPENT,
    STILL_NATS,
    STILL_NATS_PER_TOKEN,
    WIDE_ACCURACY,
)
from align.report.verdict import NOT_MEASURED


class Explanation(NamedTuple):
    """``summary`` in one line, ``measured``: how the number comes about, ``advice``: what to do about it."""

    summary: str
    measured: str
    advice: str


_CHANGES = Explanation(
    "How much more (+) or less (-) likely the answers became since the start, in nats per answer.",
    "Mean over the probe set (watch.probe_pairs held-out pairs, drawn by the seed) of log pi(y|x) now minus at step "
    "0, summed over the answer's tokens, end-of-sequence token included. The interval is a bootstrap over pairs.",
    "Rejected going down with chosen going up or staying is what was asked for. Both going down: align explain "
    "suppression.",
)

TERMS: dict[str, Explanation] = {
    "learned": Explanation(
        "Whether the model now ranks held-out pairs better than at the start.",
        "Accuracy is explained under accuracy; its interval is Wilson's, 95 %. "
        '"yes" only if the whole interval lies above the accuracy at the start and above what the longer (or the '
        'shorter) answer of each pair would score, and the two sides did not rise alike. "worse" if it lies below the '
        f'start, "too few to say" with fewer than {FEW_PAIRS} pairs, otherwise "not shown". Where the start is the '
        "reference, accuracy there is 0.5: every pair is a tie.",
        f"not shown with an interval wider than +-{WIDE_ACCURACY:g}: more pairs (watch.probe_pairs). Not shown with "
        "chosen and rejected unmoved: a larger learning rate or more steps. Worse: chosen and rejected may be swapped.",
    ),
    "moved": Explanation(
        "Whether training changed the model at all; the line appears only if it did not.",
        f'"no" if both intervals, of chosen and of rejected, lie within +-{STILL_NATS:g} nat per answer and both means '
        f"within +-{STILL_NATS_PER_TOKEN:g} nats per token.",
        "A larger learning rate, or more steps. In 16 bits small updates are rounded away: train float32 weights.",
    ),
    "imitation": Explanation(
        "Both answers of the pairs became more likely alike: imitation, not preference.",
        f'"yes" if the intervals of chosen and of rejected lie above 0 and rejected rose by at least {ALIKE:.0%} of '
        "what chosen did: then most of the rise is what answers have in common. The line takes suppression's place.",
        "flex_dpo: a beta_minus nearer to beta_plus. rpo, or a likelihood term in the objective: a smaller weight.",
    ),
    "loss": Explanation(
        "The loss on held-out rows, for objectives that compare no pairs.",
        "The loss of the evaluation at the end and before the first step; no interval is known.",
        "A lower loss says that such answers are more likely, not that they are better: read some.",
    ),
    "suppression": Explanation(
        "The chosen answers became less likely, usually together with the rejected ones.",
        '"no" unless the whole interval of chosen lies below 0 and the model moved at all; then "mild", and "yes" from '
        f"{CHOSEN_DROP_NATS:g} nats per answer (watch.chosen_drop_nats) or {CHOSEN_DROP_NATS_PER_TOKEN:g} per token. "
        '"reversed" if rejected rose meanwhile. A loss on the difference of the two falls all the same; answers that '
        "share much text pull each other down (gradient entanglement, arXiv 2410.13828).",
        "Add pull on the chosen answer: objective rpo, or {name: nll, weight: 0.1} beside yours. Take pull off the "
        "rejected one: flex_dpo with beta_minus a little below beta_plus. Or stay closer to the start: a larger beta, "
        "a smaller learning rate, fewer steps. Mild suppression with a good accuracy is common and often harmless.",
    ),
    "entanglement": Explanation(
        "Whether the two answers of a pair pull each other along: gradient entanglement (arXiv 2410.13828).",
        "Gradients g of both log-probs of watch.entanglement_pairs held-out pairs, over the adapter's weights or the "
        "last block's. A small step of gradient descent on a pair changes its log-probs by pull_w |g_w|^2 - pull_l "
        "<g_w, g_l> and pull_w <g_w, g_l> - pull_l |g_l|^2, with the loss's own pulls. The word is the case whose "
        f'Wilson interval lies above {MAJORITY:.0%}: "ideal" (chosen up, rejected down), "both down", "both up" or '
        '"reversed" (a pull has the wrong sign); otherwise "not clear". The line appears only where it says why '
        "answers moved together.",
        "Both down: less pull on the rejected answer (flex_dpo, whose beta_minus may be auto) or more on the chosen "
        "one (rpo), or calibrate: true. Exact for a step of SGD on the pair alone. Adam divides by a scale of its own "
        "and adds past gradients and other pairs, so there the case is a hint: what happened is in suppression.",
    ),
    "drop": Explanation(
        "Drastic drop (D1): rejected answers lose likelihood fast and without end.",
        "Mean change of rejected since the start, its slope over the last five readings, and its size beside chosen. "
        f'"yes" from {REJECTED_DROP_NATS_PER_TOKEN:g} nat per token. First of the 3D-properties (arXiv 2406.07327).',
        "By itself it is what training asks for; it harms where chosen answers are drawn along or likelihood goes "
        "elsewhere (suppression, dispersion). Lower flex_dpo's beta_minus, or use ipo, whose target margin is finite.",
    ),
    "degradation": Explanation(
        "Degradation (D2): chosen answers are less likely than under the reference.",
        'Share of pairs with log pi(y_w|x) < log pi_ref(y_w|x), with a Wilson interval. "yes" if the whole interval '
        f'lies above {MAJORITY:.0%}, "still falling" if the mean goes on falling over the last five readings.',
        "As for suppression, of which it is the per-pair view. Chosen answers that the model would never write itself "
        "(off-policy) are reported to degrade most, pairs of its own samples least (arXiv 2406.07327).",
    ),
    "dispersion": Explanation(
        "Dispersion (D3): likelihood moved to answers that no pair names.",
        "Change since the start, in nats per token, of two kinds of answers: borrowed from other held-out rows and "
        "scored under this prompt, and drawn by the model itself at the start. Where chosen and rejected both fell: "
        f'"mild" if the borrowed ones rose (their whole interval lies above 0), "yes" from {DRIFT_NATS_PER_TOKEN:g}; '
        'and "yes" if what the model wrote at the start lost as much, since the likelihood must then be on other '
        'text. "drift" if the borrowed answers lost as much, also those that are chosen where they come from: text of '
        'all kinds became less likely. "not seen" means not on these answers.',
        "Lower the learning rate, train for fewer steps or raise beta; {name: kl} beside the objective holds the "
        "model's distributions on given text. Whether it went to text that nobody wrote: align explain astray.",
    ),
    "drift": Explanation(
        "Change of answers outside the pairs since the start, in nats per token.",
        "Log-prob now minus at step 0 of what the model itself drew at the start (watch.probe_answers prompts, two "
        "answers each), over their tokens. Its mean is minus a KL divergence, that of the model now from the model at "
        "the start, so it falls whenever the model moves, and only by chance is it above 0. Without such samples it is "
        "that of answers borrowed from other rows, which may rise as well.",
        f"A fall is no harm by itself: learning moves a model. Beyond {DRIFT_NATS_PER_TOKEN:g} while chosen answers "
        "fall: align explain dispersion.",
    ),
    "signal": Explanation(
        "What is left for the loss to teach on held-out pairs.",
        "How hard the loss pulls on the rejected answer of each pair, over the same at the start; for DPO and other "
        "losses of log sigmoid(m) this is s / s_0 with s = sigmoid(-m). "
        f'"spent" if on most pairs (the whole interval above {SPENT:.0%}) less than a tenth is left.',
        "Spent pairs teach nothing more, while every step still moves the model: train for fewer steps, or raise beta.",
    ),
    "margin": Explanation(
        "By how much the model prefers the chosen answer, in the objective's own implicit reward.",
        "In the training lines: mean over the training batches since the last line, with the objective's beta (each "
        "side its own in flex_dpo). In a probe reading: d_w - d_l in nats, where d = log pi(y|x) - log pi_ref(y|x).",
        "It nearly always grows, also while both answers lose likelihood. Look at chosen and rejected beside it.",
    ),
    "accuracy": Explanation(
        "Share of pairs whose chosen answer gained more than the rejected one; ties count as half.",
        "It compares d_w with d_l, where d = log pi(y|x) - log pi_ref(y|x) summed over tokens, both at one scale. "
        "simpo has no reference: it compares mean log-probs per token, as its paper does, so its start may lie "
        "anywhere; inpo compares log-probs less their mix under both earlier policies. In the training lines over "
        "training batches, in the verdict over held-out pairs. 0.5 is chance where there is a reference.",
        "64 pairs leave about +-0.12; compare runs on the same pairs only.",
    ),
    "own": Explanation(
        "Accuracy on the objective's own scales, where it multiplies d_w and d_l with different numbers.",
        "Share of pairs with beta_plus d_w > beta_minus d_l (flex_dpo), or d_w / |y_w| > d_l / |y_l| (ipo per token).",
        "Raising all answers alike makes the larger scale win, so this can be near 1 without any preference: read "
        "accuracy.",
    ),
    "chosen": _CHANGES,
    "rejected": _CHANGES,
    "length": Explanation(
        "How much longer (+) or shorter (-) generated answers became.",
        "Mean tokens of greedy answers to prompts of the probe set (watch.probe_answers) at the end against the start, "
        "with a bootstrap over prompts; without them, of answers to watch.prompts or of a run's own samples. Beside "
        "it, by how much chosen answers in the probe set are longer than rejected ones.",
        f"A change of {LENGTH_CHANGE:.0%} or more that the interval confirms is often a shortcut. Growth: simpo, or "
        "ipo with reduction=per_token, divide by the length. Shorter: a smaller learning rate, fewer steps.",
    ),
    "next": Explanation(
        "The first advice whose rule applies.",
        "Rules in the order of harm: nothing measured, nothing moved, pairs swapped, suppression, imitation, "
        "collapse, text gone astray, dispersion, not learned, length, then whatever else has a word that asks to be "
        "looked at.",
        "It is a rule of thumb. Change one thing, keep the seed, compare the two runs.",
    ),
    NOT_MEASURED.replace(" ", "_"): Explanation(
        "The numbers that this line needs were not recorded.",
        "Most lines need data.held_out and readings at the start and at the end; length and astray need "
        "watch.probe_answers.",
        "Set them and run again; a missing measurement is never read as a good one.",
    ),
}
