"""Whether a server draws from the policy, and as it was asked to: a few drawn tokens are scored by our engine.

With w the distribution that is asked for at a position (the policy's, warped by temperature, top-k, top-p and min-p)
and p the policy's own, the drawn token x has log p(x), which is E_w[log p] on average, with the variance Var_w[log p].
What is left over adds up to zero over positions, whatever the texts are, so their mean has the standard error
sqrt(sum Var_w) / tokens. A server that fills in a top-k draws likelier tokens, a higher temperature or other weights
less likely ones. Log-probs that a server names are compared token by token besides, which finds small changes of the
weights, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from align.data.tokens.samples import Sample
from align.engine.probe import probe
from align.engine.reads import LogProb, Read
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.models.subject import Subject
from align.sampling.processors import warpers

if TYPE_CHECKING:
    from align.recipe.sampling import Sampling
    from align.sampling.server import ServerSampler

TOKENS = 2000  # that are scored, about
PREFIX = 256  # most of them of one sample
MOST_PROMPTS = 32
# Mean absolute difference of log-probs in nats a token that the same weights stay below in 16 bits. Measured on
# SmolLM2-135M: bfloat16 0.04, llama.cpp with activations of 8 bits 0.065, weights rounded to 4 bits 0.9.
GAP = 0.1
SLACK = 0.05  # nats a token of the means: rounding, and texts that are made into tokens again
ERRORS = 4.0  # standard errors of the mean
_FAR = 50.0  # nats; most that one token counts for


@dataclass(frozen=True)
class Asked(Read):
    """Of the distribution w that is asked for: log w(target), E_w[log p] or Var_w[log p], in nats."""

    what: Literal["logp", "mean", "variance"]
    settings: Sampling
    differentiable: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"asked_{self.what}"

    def chunk(self, logits: Tensor, target: Tensor, reference_logits: Tensor | None) -> Tensor:
        logp, asked = logits.log_softmax(-1), logits
        for warper in warpers(self.settings):
            asked = warper(None, asked)
        asked = asked.log_softmax(-1)
        if self.what == "logp":
            return asked.gather(-1, target[:, None])[:, 0].clamp(min=-_FAR)
        weight, logp = asked.exp(), logp.clamp(min=-1e4)  # no 0 times infinity
        mean = (weight * logp).sum(-1)
        return mean if self.what == "mean" else (weight * (logp - mean[:, None]).square()).sum(-1)


@dataclass(frozen=True)
class Fit:
    """What was seen of the tokens that a server drew.

    Attributes:
        tokens: how many were scored.
        mean: of their log-probs under the policy.
        expected: what that is on average, with its standard ``error``.
        gap: mean absolute difference between the server's log-probs and ours; None where it names none.
        named: tokens of which it does.
    """

    tokens: int
    mean: float
    expected: float
    error: float
    gap: float | None
    named: int

    @property
    def problem(self) -> str:
        """What is wrong, as sentences; nothing where all is as it should be."""
        found = []
        if self.gap is not None and not self.gap <= GAP:
            found.append(
                f"Its log-probs of its own samples differ from the policy's by {self.gap:.3g} nats a token on average, "
                f"over {self.named:,} tokens; with the same weights it would be below {GAP:g}: it serves other "
                "weights, such as an earlier checkpoint or a copy of 4 bits."
            )
        if not abs(self.mean - self.expected) <= ERRORS * self.error + SLACK:
            why = (
                "likelier tokens: a lower temperature, or a top_k, top_p or min_p of its own"
                if self.mean > self.expected
                else "less likely tokens: a higher temperature, a penalty, or other weights"
            )
            found.append(
                f"Under the policy the {self.tokens:,} tokens that it drew have a log-prob of {self.mean:.2f} on "
                f"average, where {self.expected:.2f} ± {self.error:.2f} is due: it draws {why}."
            )
        return " ".join(found)

    @property
    def sentence(self) -> str:
        """What was seen, where all is as it should be."""
        named = (
            "it names none of its own to compare"
            if self.gap is None
            else f"those that it names differ by {self.gap:.2g} nats a token"
        )
        return (
            f"it draws from the policy as far as {self.tokens:,} tokens show: their log-prob is {self.mean:.2f} on "
            f"average, where {self.expected:.2f} ± {self.error:.2f} is due; {named}"
        )


def fit(
    subject: Subject,
    settings: Sampling,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[Sample],
    logps: Sequence[Sequence[float]],
) -> Fit:
    """Score samples, each with its prompt, and compare.

    Args:
        subject: the policy.
        settings: how they were to be drawn.
        logps: the server's log-probs of as many of each sample's first tokens as it names.
    """
    # the end behind a stop text was not drawn
    drawn = [list(s.ids[: len(s.ids) - (s.finish == "stop")][:PREFIX]) for s in samples]
    some = [i for i, ids in enumerate(drawn) if ids]
    reads = (LogProb(), *(Asked(what, settings) for what in ("logp", "mean", "variance")))
    values = subject.score([prompts[i] for i in some], [{"s": drawn[i]} for i in some], reads, where="sample")
    gaps: list[tuple[float, float]] = []
    sums = dict.fromkeys(("logp", "asked_mean", "asked_variance"), 0.0)
    tokens = 0
    for i, row in zip(some, values, strict=True):
        of = row["s"]
        tokens += len(of["logp"])
        for name in sums:
            sums[name] += math.fsum(of[name])
        for theirs, own, asked in zip(logps[i], of["logp"], of["asked_logp"], strict=False):
            gaps.append((min(abs(theirs - own), _FAR), min(abs(theirs - asked), _FAR)))
    if not tokens:
        raise UserError("Every sample that the server drew is empty: it cannot be checked, or trained on.")
    # log-probs before temperature and the like, or after them: either is right, if it is the same for all tokens
    gap = min(math.fsum(side) for side in zip(*gaps, strict=True)) / len(gaps) if gaps else None
    error = math.sqrt(sums["asked_variance"]) / tokens
    return Fit(tokens, sums["logp"] / tokens, sums["asked_mean"] / tokens, error, gap, len(gaps))


def require_fit(
    sampler: ServerSampler,
    model: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[int],
    step: int,
    say: Callable[[str], Any],
) -> None:
    """Let a server draw for a few prompts and refuse it where it does not draw from ``model`` as asked.

    There are more of them where samples are short. They are the first of which nothing is kept: what an earlier server
    drew says nothing of this one. What it drew stays in the sampler's cache, or is taken out of it. Where everything is
    kept, nothing will be drawn, nor checked.

    Args:
        prompts: all that are still to be drawn for, token ids.
        model: the policy, where it is: it need not be on an accelerator for so few tokens.

    Raises:
        UserError: with what is wrong.
    """
    settings = sampler.settings
    places = list(islice(sampler.undrawn(prompts, keys, step), MOST_PROMPTS))
    if not places:
        return
    enough = max(8, math.ceil(TOKENS / min(settings.max_new_tokens, PREFIX)))  # samples, where none ends early
    count = max(2, math.ceil(enough / settings.samples))
    rows: list[tuple[Sequence[int], Sample]] = []
    logps: list[Sequence[float]] = []
    while places and sum(len(sample.ids[:PREFIX]) for _, sample in rows) < TOKENS:
        some, places = places[:count], places[count:]
        groups = sampler([prompts[place] for place in some], [keys[place] for place in some], step)
        drawn = [(prompts[place], sample) for place, group in zip(some, groups, strict=True) for sample in group]
        rows += drawn[:enough]
        logps += sampler.last_logps[:enough]
    attach(model.eval())
    device = next(model.parameters()).device
    engine = ScoringEngine()
    probe(engine, model, device)
    subject = Subject(model, sampler.tokenizer, engine, device=device, say=say)
    found = fit(subject, settings, [p for p, _ in rows], [s for _, s in rows], logps)
    if found.problem:
        sampler.forget()
        raise UserError(
            f"{sampler.client.url} does not draw from the policy {sampler.served} as it was asked to. {found.problem} "
            f"What it drew was thrown away. {sampler.start()}"
        )
    say(f"{sampler.client.url}: {found.sentence}")
