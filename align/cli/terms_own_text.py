"""What the words about the model's own text mean; a part of what ``align explain`` knows."""

from __future__ import annotations

from align.cli.terms import Explanation
from align.report.thresholds import ASTRAY, ASTRAY_PARTLY, FEW_DISTINCT, SAME_TO_ALL

OWN_TEXT: dict[str, Explanation] = {
    "astray": Explanation(
        "The model now writes text that is rare beside the pairs' and beside its own at the start.",
        "The model draws two answers to each of watch.probe_answers held-out prompts at temperature 1, and the "
        "reference scores them. An answer is counted whose log-prob per token is below that of 95 % of the pairs' "
        "answers and of 95 % of the model's own answers, both at the start. "
        f'"yes" from {ASTRAY:.0%} of the answers, "partly" if the whole interval lies above '
        f"{ASTRAY_PARTLY:.0%} (Wilson, with each prompt counted once). The line appears only then.",
        "Read the answers (answers.jsonl, align sample). As for suppression: more pull on the chosen answer (rpo, or "
        "{name: nll, weight: 0.1}), a larger beta, a smaller learning rate, fewer steps.",
    ),
    "collapse": Explanation(
        "The model came to say the same to everybody.",
        "METEOR (exact words, then stems) between answers to different prompts, both orders averaged, over at most 64 "
        f'pairs of them. For runs on pairs: of own answers at the end, "yes" above {SAME_TO_ALL:g} where it was not so '
        f"at the start, or if fewer than {FEW_DISTINCT:.0%} of the answers are different texts and more were. For "
        "superhf: of kept answers; a warning comes when it passes watch.similarity_limit while the reward is above the "
        "first log step's, and watch.stop_on_collapse: true ends the run there.",
        "Raise beta (objective.kl_weight for superhf), or lower train.learning_rate. Without the KL term published "
        "runs of superhf end at a similarity of 0.7 and at their highest reward (arXiv 2310.16763).",
    ),
    "distance": Explanation(
        "How far the model is from the reference.",
        "On answers that it drew itself: mean of log pi(y|x) - log pi_ref(y|x), in nats per answer, an unbiased "
        "estimate of the reverse KL that may dip below 0. An answer that the length limit cut off counts as far as "
        "it goes. For hypo over the last log steps' samples, for other runs on pairs over own answers to held-out "
        "prompts. With survivors (superhf): the full-vocabulary forward KL at the kept samples' tokens, in nats per "
        "token.",
        "A larger beta (objective.kl_weight) or a smaller learning rate holds it down; near 0 with an accuracy near "
        "the start's means little was learned.",
    ),
    "entropy": Explanation(
        "How open the model's next word is, in nats per token of its own answers.",
        "Mean over the tokens of own answers of the entropy of the distribution that each was drawn from. In "
        "metrics.jsonl under own_text, and in the verdict's line distance.",
        "Falling means surer and more uniform answers. Far above the start: the model writes noise, see astray.",
    ),
}
