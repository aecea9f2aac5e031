"""Contrast pairs put to a reward model: the figures, a table of them, and what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from align.eval.contrast import Contrasts, said
from align.eval.readable import readable
from align.judges.judge import ScoreJudge
from align.probes.consistency import CHANCE, Consistency, Figure, cells, consistency, scores_of
from align.probes.consistency_verdict import verdict
from align.versions import installed

_VERSIONS = ("align-llm", "torch", "transformers", "scikit-learn", "sentence-transformers")


@dataclass(frozen=True)
class ConsistencyResult:
    """The consistency of one judge on one set; ``scores`` [n, 2, 2] are those of the set's pairs, in its order."""

    judge: str
    contrasts: Contrasts
    found: Consistency
    scores: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: figures with intervals, the sentences, and all that they depend on."""
        return {
            "judge": self.judge,
            "source": self.contrasts.source,
            "items": len(self.contrasts.pairs),
            **self.contrasts.about,
            "dropped": dict(self.contrasts.dropped),
            "form": self.contrasts.form,
            **self.found.to_json(),
            "verdict": verdict(self.found),
            "versions": {name: installed(name) for name in _VERSIONS},
        }

    def log(self) -> dict[str, Any]:
        """``to_json``, and every pair with its four scores: ``scores[a][b]`` of answer b to instruction a."""
        pairs = [
            vars(pair) | {"scores": table.tolist()}
            for pair, table in zip(self.contrasts.pairs, self.scores, strict=True)
        ]
        return {**self.to_json(), "log": pairs}

    def lines(self) -> list[str]:
        """A table and its sentences, for the terminal."""
        nulls = list(self.found.figures[0].nulls)
        head = f"{'':<13}{'>':>6}  {'95% interval':^14}{'>=':>7}{'ties':>6}{'chance':>8}{'additive':>10}"
        table = [head + "".join(f"{name:>10}" for name in nulls) + "      n", *map(_row, self.found.figures)]
        counted = f"{self.found.pairs:,} pairs, {self.found.mirrored:,} of them in both orders"
        return [
            f"consistency of {self.judge}: {counted}",
            self.contrasts.form,
            "",
            *table,
            "",
            *verdict(self.found),
        ]


def probe(judge: ScoreJudge, contrasts: Contrasts, say: Callable[[str], Any] = print) -> ConsistencyResult:
    """Score every answer of a set under both instructions; pairs that are too long for the judge are dropped.

    Raises ``UserError`` where the judge cannot, or no pair is left.
    """
    kept = [contrasts.pairs[i] for i in readable(judge, [cells(pair) for pair in contrasts.pairs], "pair")]
    if count := len(contrasts.pairs) - len(kept):
        dropped = contrasts.dropped + Counter({f"with more tokens than {judge.name} reads": count})
        contrasts = replace(contrasts, pairs=kept, dropped=dropped)
    say(said(contrasts))
    scores = scores_of(contrasts.pairs, judge.score)
    return ConsistencyResult(judge.name, contrasts, consistency(contrasts.pairs, scores), scores)


def _row(figure: Figure) -> str:
    share = figure.share
    span = f"{share.greater.low:.3f} to {share.greater.high:.3f}"
    bound = f"{figure.additive:.3f}" if figure.additive is not None else "none"
    nulls = "".join(f"{null.greater.value:>10.3f}" for null in figure.nulls.values())
    return (
        f"{figure.name:<13}{share.greater.value:>6.3f}  {span}{share.at_least.value:>7.3f}{share.ties:>6}"
        f"{CHANCE:>8.3f}{bound:>10}{nulls}{share.greater.n:>7,}"
    )
