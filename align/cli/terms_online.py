"""What the words of a run that samples mean; a part of what ``align explain`` knows."""

from __future__ import annotations

from align.cli.terms import Explanation

ONLINE: dict[str, Explanation] = {
    "reward": Explanation(
        "The judge's mean score of the samples that were drawn, before the best are kept.",
        'The first and the last quarter of the log steps are compared; "rose" and "fell" take two standard errors, '
        'anything less is "not clear".',
        "It was trained against, so it flatters the model: let another judge score new samples (align sample), and "
        "read it with the likeness of answers: align explain collapse.",
    ),
    "alike": Explanation(
        "How alike the answers to different prompts have become.",
        "The METEOR similarity of align explain collapse, mean over the last quarter of the log steps.",
        "See align explain collapse.",
    ),
    "rounds": Explanation(
        "Sample, judge, select and train, again and again; each round starts from the last one's policy.",
        "One line a round: pairs, prompts dropped, the judge's mean score, how alike chosen answers to different "
        "prompts are, tokens of a sample, the share cut off, the judge's position bias, the loss of the first and the "
        "last log step, and the training pairs' accuracy at the last one (a dash where their margins are no larger "
        "than rounding).",
        "These numbers say whether rounds work as meant, not whether the model is better: let another judge score new "
        "samples (align sample). INPO's loss starts near 1 / (4 eta^2) and stays large: its target is 1 / (2 eta).",
    ),
    "position bias": Explanation(
        "How much a comparing judge prefers whatever it is shown first.",
        "Mean over comparisons of P(first shown is better) - 1/2, both orders; 0 is none, 0.5 is always the first.",
        "Both orders are averaged, which takes the bias off the mean but not the noise that it hides. Above 0.2, take "
        "another judge or another template.",
    ),
}
ONLINE["undecided"] = Explanation(
    "Answers of a judge behind a server that name neither of the two responses.",
    "Share of its answers, both orders; a warning from a tenth of 20 answers or more. Each counts as 1/2, so a "
    "tournament goes on as if the two were equal.",
    "Take a model that follows instructions, or a question of your own that asks for one letter "
    "(judge.endpoint.template).",
)
ONLINE["bias"] = ONLINE["position bias"]  # the heading of its column
