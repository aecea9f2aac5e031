"""Which samples of each prompt are kept: by a judge's scores, or by tournaments of a judge that compares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from align.data.tokens.prompts import prompt_of
from align.errors import UserError
from align.judges.judge import CompareJudge, ScoreJudge
from align.sampling.select import best_worst, penalised, top, tournaments

Keep = Literal["all", "best", "pair", "top", "above"]
Line = dict[str, Any]  # of a table of samples

_SAME = "prompts whose best and worst text are the same"


def score(
    judge: ScoreJudge, groups: Sequence[list[Line]], keep: Keep, amount: float | None, length_penalty: float
) -> dict[str, Any]:
    """Score what is not blank and mark what is kept, in place.

    Args:
        groups: the samples of each prompt.
        amount: how many with ``keep`` top, the score to exceed with above.

    Returns:
        ``dropped``: what is left out, by reason.

    Raises:
        UserError: for a score that is not finite.
    """
    rows = [row for group in groups for row in group if row["text"].strip()]
    scores = judge.score([prompt_of(row["prompt"]) for row in rows], [row["text"] for row in rows]) if rows else []
    for row, value in zip(rows, scores, strict=True):
        if not math.isfinite(value):
            raise UserError(f"The judge's score of sample {row['index']} to row {row['row']} is {value}, not a number.")
        row["score"] = float(value)
    dropped: Counter[str] = Counter()
    for group in groups if keep != "all" else ():
        texts = [row for row in group if row["score"] is not None]
        dropped["samples that are blank"] += len(group) - len(texts)
        if texts:
            ranked = penalised([row["score"] for row in texts], [row["text"] for row in texts], length_penalty)
            _mark(texts, ranked, keep, amount, dropped)
        else:
            dropped["prompts without a text"] += 1
    return {"dropped": +dropped}


def _mark(texts: list[Line], ranked: list[float], keep: Keep, amount: float | None, dropped: Counter[str]) -> None:
    """Mark what is kept of one prompt's samples, by their scores less the penalty."""
    if keep == "pair":
        pair = best_worst(ranked)
        if pair is None:
            dropped["prompts with equal scores" if len(texts) > 1 else "prompts with a single text"] += 1
            return
        if texts[pair.chosen]["text"] == texts[pair.rejected]["text"]:  # whose scores differ by rounding
            dropped[_SAME] += 1
            return
        texts[pair.chosen]["selected"], texts[pair.rejected]["selected"] = "chosen", "rejected"
        return
    if keep == "above":
        limit = amount or 0.0
        kept = [place for place, value in enumerate(ranked) if value > limit]
        dropped[f"samples not above {limit:g}"] += len(texts) - len(kept)
    else:
        kept = top(ranked, int(amount or 1))
    for place in kept:
        texts[place]["selected"] = "kept"


def compare(judge: CompareJudge, groups: Sequence[list[Line]], pairs: bool) -> dict[str, Any]:
    """Hold a tournament among the samples of each prompt and mark what is kept, in place.

    Blank samples do not take part; of the others the first 2, 4, 8 ... do.

    Args:
        pairs: mark the worst, too.

    Returns:
        ``dropped`` as ``score``; ``comparisons``, ``ties`` among them, and ``bias`` and ``undecided`` of them, see
        ``CompareJudge``.
    """
    dropped: Counter[str] = Counter()
    playing: list[list[Line]] = []
    for group in groups:
        texts = [row for row in group if row["text"].strip()]
        size = 1 << (len(texts).bit_length() - 1) if texts else 0
        dropped["samples that are blank"] += len(group) - len(texts)
        if size < 2:
            dropped["prompts with fewer than two texts"] += 1
            continue
        dropped["samples too many for a tournament without the blank ones"] += len(texts) - size
        playing.append(texts[:size])
    bias, undecided = judge.bias, judge.undecided

    def wins(asked: list[tuple[int, int, int]]) -> list[float]:
        prompts = [prompt_of(playing[i][0]["prompt"]) for i, _, _ in asked]
        first, second = [playing[i][a]["text"] for i, a, _ in asked], [playing[i][b]["text"] for i, _, b in asked]
        return judge.compare(prompts, first, second)

    outcomes = tournaments(wins, [len(texts) for texts in playing])
    for texts, outcome in zip(playing, outcomes, strict=True):
        if outcome.pair is None:
            reason = "was a tie" if outcome.dropped == "tie" else "went against the winner"
            dropped[f"prompts whose final comparison {reason}"] += 1
            continue
        chosen, rejected = texts[outcome.pair.chosen], texts[outcome.pair.rejected]
        if not pairs:
            chosen["selected"] = "kept"
        elif chosen["text"] == rejected["text"]:
            dropped[_SAME] += 1
        else:
            chosen["selected"], rejected["selected"] = "chosen", "rejected"
    return {
        "dropped": +dropped,
        "comparisons": sum(outcome.comparisons for outcome in outcomes),
        "ties": sum(outcome.ties for outcome in outcomes),
        "bias": [judge.bias[0] - bias[0], judge.bias[1] - bias[1]],
        "undecided": [judge.undecided[0] - undecided[0], judge.undecided[1] - undecided[1]],
    }
