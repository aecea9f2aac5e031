"""The curves of a run: which values are drawn for which kind of run, and what is said of those that are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.report.page.panel import Limit, Panel, read
from align.report.record import RunRecord
from align.report.thresholds import DRIFT_NATS_PER_TOKEN, MAJORITY, REJECTED_DROP_NATS_PER_TOKEN

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Line:
    """A value of ``metrics.jsonl`` (see ``panel.read``) and what it is called."""

    key: str
    label: str
    noisy: bool = False


@dataclass(frozen=True)
class Curve:
    """A chart that a kind of run has, where any of its ``lines`` was recorded."""

    title: str
    about: str
    unit: str
    lines: tuple[Line, ...]
    limits: tuple[Limit, ...] = ()
    log: bool = False

    def panel(self, records: Records, x: str = "step") -> Panel | None:
        """The chart; None where nothing of it was recorded."""
        found = [read(records, one.key, one.label, style=i, noisy=one.noisy, x=x) for i, one in enumerate(self.lines)]
        series = tuple(one for one in found if one is not None)
        # a limit belongs to a chart of lines that are there
        return Panel(self.title, self.about, self.unit, series, self.limits, self.log, x) if series else None


LOSS = Curve(
    "Loss",
    "Of the training batches since the last log step, and of all held-out rows.",
    "",
    (Line("loss", "training", noisy=True), Line("eval_loss", "held-out")),
)
GRADIENT = Curve(
    "Gradient norm", "Of the whole step, before it is clipped.", "", (Line("grad_norm", "norm", noisy=True),), log=True
)
MARGIN = Curve(
    "Margin",
    "How far the chosen answer is ahead, in the objective's own reward.",
    "reward",
    (
        Line("rewards/margins", "training", noisy=True),
        Line("probe/reward_margin", "probe set"),
        Line("eval_rewards/margins", "held-out"),
    ),
)
ACCURACY = Curve(
    "Accuracy",
    "Share of pairs in which the chosen answer gained more than the rejected one.",
    "share of pairs",
    (
        Line("rewards/accuracies", "training", noisy=True),
        Line("probe/accuracy", "probe set"),
        Line("eval_rewards/accuracies", "held-out"),
    ),
    (Limit(0.5, "one half"),),
)
LENGTH = Curve(
    "Length",
    "Mean tokens of answers that the model wrote.",
    "tokens",
    (
        Line("own_text/tokens", "own samples"),
        Line("samples/tokens", "samples", noisy=True),
        Line("answer_tokens", "greedy answers"),
        Line("generated_tokens", "watched prompts"),
    ),
)
PAIRS = (
    LOSS,
    MARGIN,
    ACCURACY,
    Curve(
        "Chosen and rejected",
        "How much likelier the answers of the probe set became since the start, with 95 % intervals.",
        "nats per answer",
        (Line("probe/chosen", "chosen"), Line("probe/rejected", "rejected")),
        (Limit(0.0, ""),),
    ),
    Curve(
        "Drift on unseen answers",
        "How much likelier answers became that no pair of their prompt names.",
        "nats per token",
        (Line("probe/drift", "unseen"),),
        (Limit(0.0, ""),),
    ),
    Curve(
        "Reverse KL",
        "How far the policy went, by the text that it writes itself.",
        "nats per sample",
        (Line("own_text/reverse_kl", "own samples"), Line("kl/sampled", "training samples", noisy=True)),
        (Limit(0.0, ""),),
    ),
    Curve(
        "Entropy",
        "How open the next token is, in text that the policy writes itself.",
        "nats per token",
        (Line("own_text/entropy", "own samples"),),
    ),
    Curve(
        "Text nobody wrote",
        "Share of own samples that are rarer than nearly all of the pairs' answers and of its own at the start.",
        "share of samples",
        (Line("own_text/astray", "astray"),),
    ),
    Curve(
        "Likeness",
        "METEOR between own samples to different prompts, and the share of texts that differ.",
        "0 to 1",
        (Line("own_text/likeness", "likeness"), Line("own_text/distinct", "different texts")),
    ),
    LENGTH,
    GRADIENT,
)
LIKELIHOOD = (LOSS, LENGTH, GRADIENT)
SCORES = (
    LOSS,
    Curve(
        ACCURACY.title,
        "Share of pairs whose chosen answer has the higher score.",
        ACCURACY.unit,
        (ACCURACY.lines[0], ACCURACY.lines[2]),
        (Limit(0.5, "chance"),),
    ),
    Curve(
        MARGIN.title, "By how much the chosen answer's score is higher.", "score", (MARGIN.lines[0], MARGIN.lines[2])
    ),
    Curve(
        "Scores",
        "Mean scores of both sides in the training batches. Only their difference is trained.",
        "score",
        (Line("rewards/chosen", "chosen", noisy=True), Line("rewards/rejected", "rejected", noisy=True)),
    ),
    GRADIENT,
)
FORGETTING = (
    LOSS,
    Curve(
        "Forgotten tokens",
        "Mean probability of the tokens to be forgotten, in the training batches.",
        "probability",
        (Line("p/forget", "forgotten", noisy=True),),
    ),
    Curve(
        "Retained rows",
        "Loss on rows to be kept, in the training batches.",
        "nats per token",
        (Line("nll/retain", "retained", noisy=True),),
    ),
    Curve(
        "Utility",
        "What the test suite finds of the model's other knowledge.",
        "0 to 1",
        (Line("evaluation/utility", "all sets"), Line("evaluation/utility_retain", "retained rows")),
    ),
    Curve(
        "Forgotten answers",
        "What the test suite still gets of the forgotten answers.",
        "0 to 1",
        (Line("evaluation/forget_probability", "probability"), Line("evaluation/forget_rouge", "ROUGE-L")),
    ),
    GRADIENT,
)
SURVIVORS = (
    LOSS,
    Curve(
        "Reward",
        "The judge's mean score of all samples, and of those kept. The model is trained against this judge.",
        "score",
        (Line("reward/samples", "all", noisy=True), Line("reward/kept", "kept", noisy=True)),
    ),
    Curve(
        "Likeness",
        "METEOR between answers to different prompts. Answers that become one answer collapse.",
        "0 to 1",
        (Line("similarity/survivors", "kept", noisy=True), Line("similarity/random", "all", noisy=True)),
    ),
    Curve(
        "KL",
        "From the model at the start to the policy, on kept samples.",
        "nats per token",
        (Line("kl_forward/survivor", "kept", noisy=True),),
    ),
    LENGTH,
    GRADIENT,
)
ROUNDS = (
    Curve(
        "Score",
        "The judge's mean score of all samples of a round. Each round may have other prompts.",
        "score",
        (Line("score", "samples"),),
    ),
    Curve("Likeness", "METEOR between chosen answers to different prompts.", "0 to 1", (Line("similarity", "chosen"),)),
    Curve(
        "Accuracy",
        "Share of training pairs ranked right at the end of a round.",
        "share of pairs",
        (Line("accuracy", "training"),),
        (Limit(0.5, "one half"),),
    ),
    Curve("Length", "Mean tokens of the samples.", "tokens", (Line("tokens", "samples"),)),
)
THREE_D = (
    Curve(
        "Drop",
        "Rejected answers lose likelihood fast: from -1 their tokens are e times less likely on average.",
        "nats per token",
        (Line("probe/rejected_per_token", "rejected"),),
        (Limit(-REJECTED_DROP_NATS_PER_TOKEN, "drop"),),
    ),
    Curve(
        "Degradation",
        "Share of pairs whose chosen answer is less likely than under the reference (without one: at the start).",
        "share of pairs",
        (Line("probe/below", "chosen fell"),),
        (Limit(MAJORITY, "degradation"),),
    ),
    Curve(
        "Dispersion",
        "Likelihood goes to answers that no pair names, while both sides of the pair fall.",
        "nats per token",
        (
            Line("probe/drift", "unseen"),
            Line("probe/chosen_per_token", "chosen"),
            Line("probe/rejected_per_token", "rejected"),
            Line("probe/borrowed", "borrowed"),
        ),
        (Limit(DRIFT_NATS_PER_TOKEN, "dispersion"),),
    ),
    Curve(
        "Remaining signal",
        "How much of its pull at the start the loss still has on the pairs of the probe set.",
        "share",
        (Line("probe/signal", "left"),),
    ),
)


def curves(run: RunRecord) -> tuple[Curve, ...]:
    """The charts that make sense for a run."""
    if run.kind == "preference":
        return PAIRS if compares_pairs(run) else LIKELIHOOD
    return {"unlearning": FORGETTING, "reward": SCORES, "survivors": SURVIVORS, "rounds": ROUNDS}[run.kind]


def compares_pairs(run: RunRecord) -> bool:
    """Whether a run on preferences compares two answers, as far as it recorded."""
    return any("rewards/margins" in record or "probe" in record for record in run.metrics)


def panels(run: RunRecord, wanted: Sequence[Curve]) -> tuple[list[Panel], list[str]]:
    """The charts of ``wanted`` that the run has, and the titles of those that it has not."""
    found = [(curve.title, curve.panel(run.metrics, "round" if run.kind == "rounds" else "step")) for curve in wanted]
    return [panel for _, panel in found if panel is not None], [title for title, panel in found if panel is None]
