"""What the words of an unlearning run mean; a part of ``align.cli.terms.TERMS``."""

from __future__ import annotations

from align.cli.terms import Explanation
from align.report.unlearning import ALPHA, COLLAPSED, KEPT

_STOP = "Take it into watch.stop_when, such as utility < 0.9 * start; the verdict and eval/step-N.json show it too."

_UNNAMED = (
    "held only counts where retained people are answered so asked, too, at least half as often as by name: else the "
    "model does not follow such questions, and the word is unclear."
)

UNLEARNING: dict[str, Explanation] = {
    "utility_retain": Explanation(
        "What the model still can do on retained rows alone, in [0, 1].",
        "Harmonic mean of probability, ROUGE-L recall and truth ratio on the suite's retain set.",
        _STOP,
    ),
    "forget_probability": Explanation(
        "How likely the forgotten answers still are.",
        "Mean over forgotten questions of exp(-mean nats per token of the true answer), end token included.",
        _STOP,
    ),
    "forget_rouge": Explanation(
        "How much of the forgotten answers the model still writes.",
        "Mean ROUGE-L recall of its greedy answers to forgotten questions.",
        _STOP,
    ),
    "forget_truth_ratio": Explanation(
        "Whether the model prefers the true forgotten answer to wrong ones; 1 if it does not tell them apart.",
        "Mean of min(R, 1/R), R the wrong answers' probability over the paraphrased true one's (geometric mean).",
        _STOP,
    ),
    "forget_quality": Explanation(
        "How alike this model and one that never saw the forgotten rows are on them; a p-value.",
        "Exact two-sample Kolmogorov-Smirnov test between the truth ratios of both on the forgotten questions "
        "(arXiv 2401.06121). It depends on the number of questions, so D and n stand beside it.",
        "A peak that a run passes: read it with utility, at the last step, on several seeds. A high one says that this "
        "many questions showed no difference, and nothing about relearning.",
    ),
    "forgetting": Explanation(
        "Whether the model answers forgotten questions like one that never saw them.",
        f'"like retain" with forget quality above {ALPHA:g}, "differs" with less; "as before" where it was above at '
        "the start, too: a model that never knew the rows, or too few of them. Not measured without a suite (evaluate) "
        "or without evaluate.retain.",
        "differs: look at eval/trajectory.png. Before the peak train longer, after it for fewer steps.",
    ),
    "utility": Explanation(
        "What the model still can do, in [0, 1].",
        "Harmonic mean of nine: probability, ROUGE-L recall and truth ratio on retained people, real authors and world "
        f'facts. "kept" from {KEPT:g} of the start, "collapsed" below {COLLAPSED:g} of it, "damaged" between.',
        "Damaged or collapsed: add or strengthen a retain term (nll or kl on the branch retain), lower the rate, or "
        "train for fewer steps.",
    ),
    "best": Explanation(
        "The step kept in best/, beside the last one in model/.",
        "Highest forget quality among evaluated steps with evaluate.keep_utility of the utility at the start.",
        "It was selected on the test questions, so its figures are too good: never report them as a result.",
    ),
    "durability": Explanation(
        "Whether what was forgotten stays so.",
        "align eval relearn RUN: a few steps on a few forgotten rows, weights in 8 and 4 bits and NF4, questions in "
        "other words, without a name (alias, two hops) and asked often (leak@k); each forgotten row is compared with "
        "itself (docs/diagnostics.md).",
        "came back: the answers were hidden, not removed. Other attacks (other languages, probing, fine-tuning on "
        "other text) are not tried.",
    ),
    "leak@k": Explanation(
        "How likely it is that one of k replies or more gives a forgotten answer away.",
        "n samples of each forgotten question at temperature 1 (--samples), c of which leak: mean over questions of "
        "1 - C(n-c,k)/C(n,k) (arXiv 2511.04934). A sample leaks with ROUGE-L recall of the answer of 0.9 or more "
        "(--leaks-at), or where --judge finds the answer in it. The interval is a bootstrap over questions.",
        "Answers are hit by guessing, too, so read it with --control, which asks the retain model as often; without it "
        "the word is rose at most. held takes some 75 questions, or no leak among them shows little.",
    ),
    "alias": Explanation(
        "The forgotten questions with the person described by other facts in place of the name.",
        'align eval relearn asks the column alias_question; the generated world has it ("the person whose trade is '
        'baking and whose home town is Sallow"), TOFU has not.',
        _UNNAMED,
    ),
    "two hops": Explanation(
        "The forgotten questions by way of somebody else, from whom the person is found.",
        'align eval relearn asks the column two_hop_question; the generated world has it ("the person who shares the '
        'home town of Kasia Umberlin"), TOFU has not.',
        _UNNAMED,
    ),
}
