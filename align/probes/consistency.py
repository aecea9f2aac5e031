"""Does a reward model read the instruction: ContrastInstructions (arXiv 2309.16155) as mathematics on scores.

A contrast pair is two instructions that are alike, each with its own answer. With R[a, b] the score of answer b to
instruction a, four comparisons should come out right:

- C_res, one instruction and two answers: R[1, 1] > R[1, 2], and on the other side R[2, 2] > R[2, 1].
- C_ins, one answer and two instructions: R[1, 1] > R[2, 1], and on the other side R[2, 2] > R[1, 2].

The released scripts score the first side alone ("query"), most with > and one with >=. Both are computed here, and both
sides together ("both"), which an additive reward a(instruction) + b(answer) cannot pass: where it is right on one side,
it is wrong on the other, so it gets exactly 0.5 wherever there are no ties. Chance is 0.5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.stats import Interval, wilson

CHANCE = 0.5
Prompt = str | list[dict[str, str]]  # a text, or the messages of a conversation
Score = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class ContrastPair:
    """Two instructions, each with the answer that fits it and, in the benchmark's sense, not the other."""

    instruction_1: Prompt
    response_1: str
    instruction_2: Prompt
    response_2: str

    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Instruction and answer of either side, as texts by which pairs are compared."""
        return (_text(self.instruction_1), self.response_1), (_text(self.instruction_2), self.response_2)


@dataclass(frozen=True)
class Share:
    """Comparisons that come out right, with > and with >=, which differ by the ties; intervals are Wilson's, 95 %."""

    greater: Interval
    at_least: Interval
    ties: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {">": self.greater.to_json(), ">=": self.at_least.to_json(), "ties": self.ties}


@dataclass(frozen=True)
class Figure:
    """One number of the table.

    Attributes:
        metric: C_res or C_ins.
        sides: ``query`` takes the first side of every item, as the released scripts do. ``both`` takes every pair once,
            even if the set holds it in both orders; a pair counts 0, 1/2 or 1, and ``n`` is the number of pairs, since
            the two sides of a pair are not independent.
        share: what the model gets.
        nulls: what a rule gets that only measures the answer, by its name.
        additive: the most that any additive reward can get with >; None where it can get everything.
    """

    metric: str
    sides: str
    share: Share
    nulls: Mapping[str, Share]
    additive: float | None

    @property
    def name(self) -> str:
        return f"{self.metric}, {self.sides}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        nulls = {name: share.to_json() for name, share in self.nulls.items()}
        return {**self.share.to_json(), "chance": CHANCE, "additive": self.additive, "nulls": nulls}


@dataclass(frozen=True)
class Consistency:
    """All figures of a set, and what the scores are made of.

    Attributes:
        figures: C_res and C_ins, each on both sides and on the query side.
        pairs: distinct pairs; ``mirrored`` of them stand in the set in both orders.
        interaction: share of the variance of scores within pairs that depends on instruction and answer together
            (see ``interaction``); None where all scores within pairs are equal.
        longer: comparisons of answers to one instruction in which the longer one scores higher, over those in which
            length and score both differ; None where there are none.
    """

    figures: tuple[Figure, ...]
    pairs: int
    mirrored: int
    interaction: float | None
    longer: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, figures by metric and sides."""
        metrics: dict[str, dict[str, Any]] = {}
        for figure in self.figures:
            metrics.setdefault(figure.metric, {})[figure.sides] = figure.to_json()
        return {
            "pairs": self.pairs,
            "mirrored": self.mirrored,
            "metrics": metrics,
            "interaction": self.interaction,
            "longer_scores_higher": self.longer.to_json() if self.longer else None,
        }


def cells(pair: ContrastPair) -> list[tuple[Prompt, str]]:
    """Both answers to the first instruction, then both to the second."""
    prompts, responses = (pair.instruction_1, pair.instruction_2), (pair.response_1, pair.response_2)
    return [(prompt, response) for prompt in prompts for response in responses]


def scores_of(pairs: Sequence[ContrastPair], score: Score) -> np.ndarray:
    """R [n, 2, 2]: of each pair the score of answer b to instruction a. No answer to a prompt is scored twice."""
    asked = [cell for pair in pairs for cell in cells(pair)]
    keys = [(_text(prompt), response) for prompt, response in asked]
    different = dict(zip(keys, asked, strict=True))
    values = score([prompt for prompt, _ in different.values()], [response for _, response in different.values()])
    found = dict(zip(different, values, strict=True))
    return np.array([found[key] for key in keys], dtype=np.float64).reshape(-1, 2, 2)


def consistency(pairs: Sequence[ContrastPair], scores: np.ndarray) -> Consistency:
    """Every figure of a set from its scores [n, 2, 2]. Raises ValueError for an empty set or other shapes."""
    if not pairs or scores.shape != (len(pairs), 2, 2):
        raise ValueError(f"expected scores of shape [{len(pairs)}, 2, 2] of at least one pair, got {scores.shape}")
    first: dict[frozenset[tuple[str, str]], int] = {}
    for index, pair in enumerate(pairs):
        first.setdefault(frozenset(pair.sides()), index)
    distinct = list(first.values())
    orders = {pair.sides() for pair in pairs}
    mirrored = sum(pairs[index].sides()[::-1] in orders for index in distinct)
    lengths = np.array([[[len(pair.response_1), len(pair.response_2)]] * 2 for pair in pairs], dtype=np.float64)
    tables = {"model": scores, "longest": lengths, "shortest": -lengths}
    # of a pair in both orders an additive reward gets one query side at most
    bounds = {"both": CHANCE, "query": 1 - mirrored / len(pairs) if mirrored else None}
    figures = []
    for metric in ("C_res", "C_ins"):
        for sides, bound in bounds.items():
            gaps = {name: margins(table, metric) for name, table in tables.items()}
            shares = {name: _share(gap[distinct] if sides == "both" else gap[:, :1]) for name, gap in gaps.items()}
            figures.append(Figure(metric, sides, shares.pop("model"), shares, bound))
    known = scores[distinct]
    return Consistency(tuple(figures), len(distinct), mirrored, interaction(known), _longer(known, lengths[distinct]))


def margins(scores: np.ndarray, metric: str) -> np.ndarray:
    """By how much each comparison comes out right, [n, 2]: first and second side. ``metric`` is C_res or C_ins."""
    right = np.stack([scores[:, 0, 0], scores[:, 1, 1]], axis=1)
    wrong = np.stack([scores[:, 0, 1], scores[:, 1, 0]], axis=1)
    return right - (wrong if metric == "C_res" else wrong[:, ::-1])


def interaction(scores: np.ndarray) -> float | None:
    """Share of the variance within pairs that depends on instruction and answer together, from scores [n, 2, 2].

    The four scores of a pair split into three contrasts, orthogonal and of equal length: R11 + R12 - R21 - R22 of the
    instructions, R11 - R12 + R21 - R22 of the answers, and the interaction R11 - R12 - R21 + R22. The share is the sum
    of squares of the last over that of all three: 0 for a(instruction) + b(answer), 1/3 on average for independent
    scores of one distribution, 1 where only the fit of the two counts. None where all scores within pairs are equal.
    """
    (r11, r12), (r21, r22) = scores[:, 0].T, scores[:, 1].T
    of_instruction, of_answer = r11 + r12 - r21 - r22, r11 - r12 + r21 - r22
    together = r11 - r12 - r21 + r22
    total = float((of_instruction**2 + of_answer**2 + together**2).sum())
    return float((together**2).sum()) / total if total > 0 else None


def _share(gaps: np.ndarray) -> Share:
    """Of comparisons [n, sides], n units: the sides of a pair are averaged."""
    n, sides = gaps.shape
    greater, at_least = int((gaps > 0).sum()), int((gaps >= 0).sum())
    return Share(wilson(greater / sides, n), wilson(at_least / sides, n), at_least - greater)


def _longer(scores: np.ndarray, lengths: np.ndarray) -> Interval | None:
    """How often the longer of two answers to one instruction scores higher."""
    gaps = scores[:, :, 0] - scores[:, :, 1]
    told = np.sign(gaps) * np.sign(lengths[:, :, 0] - lengths[:, :, 1])
    known = int((told != 0).sum())
    return wilson(int((told > 0).sum()), known) if known else None


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
