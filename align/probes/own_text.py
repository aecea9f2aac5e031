"""What the policy writes by itself, as numbers: how far its own answers are from what the reference would write.

Mass that training moves to text which no pair names cannot be seen on any fixed answers; samples of the policy show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from align.probes.displacement import RESAMPLES
from align.stats import Interval, bootstrap_mean, bootstrap_ratio, finite, wilson

RARE = 0.05  # astray: less likely under the reference than all but this share of the answers that are known

Against = Literal["reference", "start", ""]


@dataclass(frozen=True)
class OwnSamples:
    """Samples of the policy, K for each of P prompts: numbers of each, [P, K] in float64.

    ``logp``, ``entropy`` and ``reference`` are added up over a sample's tokens, in nats: its log-prob, the entropies of
    the distributions that its tokens were drawn from, and its log-prob under the reference (or the policy at the
    start); None where there is nothing to compare with. ``cut`` is 1 where the length limit ended it.
    """

    tokens: np.ndarray
    logp: np.ndarray
    entropy: np.ndarray
    cut: np.ndarray
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class OwnTextReading:
    """What the policy's own answers were like at one step; intervals are 95 %, over prompts.

    ``n`` samples of ``prompts`` prompts. ``reverse_kl`` is the mean of log pi(y) - log pi_ref(y), nats per sample, an
    unbiased estimate that may dip below 0; ``reference_logp`` is the log-prob under the reference, and ``entropy`` that
    of the policy, in nats per token. ``astray`` is the share of samples whose log-prob per token under the reference is
    below ``bar``; see ``rare``. ``likeness`` is METEOR between samples of different prompts, ``distinct`` the share of
    different texts, ``cut`` that of samples ended by the ``limit`` of new tokens. ``against`` says what stands for the
    reference; where nothing does, ``why`` says so.
    """

    n: int
    prompts: int
    limit: int
    reverse_kl: Interval | None
    reverse_kl_per_token: Interval | None
    reference_logp: Interval | None
    astray: Interval | None
    bar: float | None
    entropy: Interval
    likeness: float | None
    distinct: float
    tokens: Interval
    cut: float
    against: Against
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for ``metrics.jsonl``; what is not finite becomes null."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in data.items()}


def rare(*logp_per_token: np.ndarray) -> float:
    """Below which log-prob per token a text is rarer than what is known: in each kind, RARE of the texts are rarer.

    ``logp_per_token``: of texts of several kinds (what people wrote, what the policy wrote at the start), each [n]. The
    rarest kind counts.
    """
    return min(float(np.quantile(kind, RARE)) for kind in logp_per_token)


def read_own_text(
    samples: OwnSamples,
    texts: Sequence[str],
    *,
    likeness: float,
    limit: int,
    bar: float,
    against: Against,
    why: str = "",
    seed: int = 0,
) -> OwnTextReading:
    """The reading of samples [P, K] with their ``texts`` [P * K].

    The samples of a prompt are added up before anything is resampled, since they are not independent of each other.
    """
    tokens = samples.tokens.sum(1)

    def by_token(values: np.ndarray) -> Interval:
        return bootstrap_ratio(values.sum(1), tokens, seed, resamples=RESAMPLES)

    def mean(values: np.ndarray) -> Interval:
        return bootstrap_mean(values.mean(1), seed, resamples=RESAMPLES)

    reference = samples.reference
    gap = None if reference is None else samples.logp - reference
    return OwnTextReading(
        n=samples.tokens.size,
        prompts=len(tokens),
        limit=limit,
        reverse_kl=None if gap is None else mean(gap),
        reverse_kl_per_token=None if gap is None else by_token(gap),
        reference_logp=None if reference is None else by_token(reference),
        astray=None if reference is None else _share_below(reference / samples.tokens, bar),
        bar=None if reference is None else bar,
        entropy=by_token(samples.entropy),
        likeness=finite(likeness),
        distinct=len(set(texts)) / len(texts),
        tokens=mean(samples.tokens),
        cut=float(samples.cut.mean()),
        against=against,
        why=why,
    )


def _share_below(values: np.ndarray, bar: float) -> Interval:
    """Share of ``values`` [P, K] below ``bar``; Wilson's interval counts prompts, as if samples were copies."""
    prompts = len(values)
    if not np.isfinite(values).all() or not np.isfinite(bar):
        return Interval(float("nan"), float("nan"), float("nan"), prompts)
    return wilson(float((values < bar).mean()) * prompts, prompts)


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return value.to_json()
    return finite(value) if isinstance(value, float) else value
