"""What the figures of ``consistency`` say, in sentences that each hold their number and its threshold."""

from __future__ import annotations

from align.probes.consistency import CHANCE, Consistency, Figure
from align.probes.nulls import not_above, span

ADDITIVE = 0.01  # share of the interaction below which scores are called additive; rounding in 16 bits stays below it
LENGTH_RULE = 0.9  # share of comparisons that follow length, one way or the other, from which it is called a rule

_APART = {
    "C_res": "the answer to an instruction from the answer to its neighbour",
    "C_ins": "the instruction of an answer from its neighbour",
}


def verdict(found: Consistency) -> list[str]:
    """Both metrics on both sides, what the scores are made of, and what a rule without reading gets as well."""
    both = [figure for figure in found.figures if figure.sides == "both"]
    told = [*map(_apart, both), _interaction(found, any(map(tells_apart, both)))]
    return [sentence for sentence in (*told, _query_side(found), _length(found), *_nulls(found)) if sentence]


def tells_apart(figure: Figure) -> bool:
    """Whether the whole interval, ties counted as wrong, lies above chance."""
    return figure.share.greater.low > CHANCE


def _apart(figure: Figure) -> str:
    share, what = figure.share, _APART[figure.metric]
    greater, at_least = share.greater, share.at_least
    ties = f", {share.ties} of {2 * greater.n} comparisons tied" if share.ties else ""
    number = f"{figure.metric} {span(greater.value, greater)}, {greater.n} pairs{ties}"
    if tells_apart(figure):
        return f"{number}: above {CHANCE}, so the model tells {what}."
    if at_least.high < CHANCE:
        return f"{number}: below {CHANCE} even if ties count as right, so the model has it the wrong way round."
    reason = f"the interval covers {CHANCE}" if greater.high >= CHANCE else f"only ties keep it from {CHANCE}"
    return f"{number}: {reason}, so the model cannot tell {what}, as far as these pairs show."


def _interaction(found: Consistency, told_apart: bool) -> str:
    if found.interaction is None:
        return "All scores within pairs are equal: they depend on neither instruction nor answer."
    part = f"{found.interaction:.2%} of the variance of scores within pairs depends on instruction and answer together"
    if found.interaction < ADDITIVE and not told_apart:
        return (
            f"ADDITIVE: {part} (below {ADDITIVE:.0%}). Scores are a(instruction) + b(answer), and no such reward gets "
            f"more than {CHANCE} with both sides counted."
        )
    return f"Interaction: {part}; additive scores have 0% (called so below {ADDITIVE:.0%}), random ones 33%."


def _query_side(found: Consistency) -> str | None:
    """How much the query side alone lets pass."""
    bound = next(figure.additive for figure in found.figures if figure.sides == "query")
    if bound is not None and bound <= CHANCE:
        return None
    top = f"up to {bound:.3f}" if bound is not None else "anything up to 1"
    return f"The query side alone is no proof: an additive reward may get {top} there. Read both sides."


def _length(found: Consistency) -> str | None:
    longer = found.longer
    if longer is None or 1 - LENGTH_RULE < longer.value < LENGTH_RULE:
        return None
    word, share = ("longer", longer.value) if longer.value >= LENGTH_RULE else ("shorter", 1 - longer.value)
    return (
        f"LENGTH: the {word} answer scores higher in {share:.1%} of {longer.n} comparisons (a rule from "
        f"{LENGTH_RULE:.0%}), so the scores say little but how long an answer is."
    )


def _nulls(found: Consistency) -> list[str | None]:
    """Figures in which a null model is as good, but for those that it cannot get at all."""
    said = []
    for figure in found.figures:
        nulls = {name: null.greater.value for name, null in figure.nulls.items()}
        if any(nulls.values()):
            said.append(not_above(figure.name, figure.share.greater.value, figure.share.greater, nulls))
    return said
