"""A judge on a public benchmark of reward models, beside two null models that know nothing but how long answers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from align.data.rows.questions import prompt_of, reply_of
from align.errors import UserError
from align.eval.result import limited, mark
from align.eval.reward_bench_figures import Scores, Share, figures, style_matrix, ties
from align.eval.reward_bench_rows import STYLES, TITLES, Item, Kind
from align.judges.judge import CompareJudge, Judging
from align.runs.terminal import Work

_AT_A_TIME = 64  # items between two signs of progress
NULLS = {"longest": 1.0, "shortest": -1.0}  # times the number of characters


@dataclass(frozen=True)
class BenchResult:
    """Figures of a judge by name, and of the null models by their names and the figure's.

    ``styles`` is RM-Bench's matrix over all items, rows the chosen answer's style. ``notes`` is what a reader must
    know, ``limit`` the items of each subset that a trial took.
    """

    kind: Kind
    judge: str
    found: dict[str, Share]
    nulls: dict[str, dict[str, Share]]
    styles: list[list[float]] | None = None
    notes: list[str] = field(default_factory=list)
    limit: int | None = None

    def matched_by(self, name: str) -> list[str]:
        """The null models that a figure does not set the judge apart from: they reach its interval or pass it."""
        own = self.found[name]
        low = own.value if own.interval is None else own.interval.low
        return [null for null, values in self.nulls.items() if values[name].value >= low]

    def sentences(self) -> list[str]:
        """A sentence for each figure that a null model reaches, the better one of them, or that chance does."""
        said = []
        for name, own in self.found.items():
            if nulls := self.matched_by(name):
                best = max(nulls, key=lambda null: self.nulls[null][name].value)
                said.append(
                    f"{name}: {_span(own)}, and always the {best} answer scores {self.nulls[best][name].value:.2f}: "
                    "this figure says nothing about what the judge knows"
                )
            elif _no_better_than_chance(own):
                said.append(f"{name}: {_span(own)} is no better than chance ({own.chance:.2f})")
        return said

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        entries = {}
        for name, own in self.found.items():
            entries[name] = {
                "value": own.value,
                "interval": None if own.interval is None else own.interval.to_json(),
                "n": own.n,
                "chance": own.chance,
                **{null: values[name].value for null, values in self.nulls.items()},
                "matched_by": self.matched_by(name),
            }
        return {
            "benchmark": self.kind,
            "judge": self.judge,
            "figures": entries,
            **({} if self.styles is None else {"styles": self.styles}),
            "sentences": self.sentences(),
            "notes": list(self.notes),
            **limited(self.limit),
        }

    def lines(self) -> list[str]:
        """A table for the terminal, the sentences, and the notes."""
        marked = [] if self.limit is None else [mark(self.limit)]
        width = max(len("figure"), *map(len, self.found))
        out = [
            *marked,
            f"{TITLES[self.kind]}: {self.judge}",
            "",
            f"{'figure':<{width}}  {'judge':>5}  {'95% interval':<12}  {'longest':>7}  {'shortest':>8}  {'chance':>6}  "
            f"{'rows':>5}",
        ]
        for name, own in self.found.items():
            span = "" if own.interval is None else f"{own.interval.low:.2f} to {own.interval.high:.2f}"
            longest, shortest = (self.nulls[null][name].value for null in NULLS)
            chance = "-" if own.chance is None else f"{own.chance:.2f}"
            out.append(
                f"{name:<{width}}  {own.value:>5.2f}  {span:<12}  {longest:>7.2f}  {shortest:>8.2f}  {chance:>6}  "
                f"{own.n:>5}" + ("  !" if self.matched_by(name) else "")
            )
        if self.styles is not None:
            out += ["", "accuracy by style of the chosen answer (rows) and of the rejected one (columns)"]
            names = ("concise", "detailed", "markdown")
            out.append(f"{'':<8}  " + "  ".join(f"{name:>8}" for name in names))
            for name, row in zip(names, self.styles, strict=True):
                out.append(f"{name:<8}  " + "  ".join(f"{value:>8.2f}" for value in row))
        if said := self.sentences():
            out += ["", *(f"! {text}" for text in said)]
        if self.notes:
            out += ["", "notes", *(f"  {note}" for note in self.notes)]
        return out


def measure(
    judge: Judging,
    kind: Kind,
    items: Sequence[Item],
    *,
    conversational: bool,
    notes: Sequence[str] = (),
    limit: int | None = None,
) -> BenchResult:
    """Ask a judge all answers of a benchmark's items.

    Args:
        judge: one that scores; one that compares can answer only where each item is a pair.
        conversational: whether questions are put as turns, as to a model with a chat template; see ``prompt_of``.
        notes: what was said when the items were read.
        limit: see ``load_benchmark``.

    Raises:
        UserError: where the judge cannot answer, or as the judge raises it.
    """
    scores = _scores(judge, items, conversational, TITLES[kind])
    nulls = {
        name: figures(kind, items, [[sign * len(text) for text in item.answers] for item in items])
        for name, sign in NULLS.items()
    }
    said = list(notes)
    if equal := ties(items, scores):
        said.append(
            f"in {equal:,} of {len(items):,} rows the judge scores a right and a wrong answer alike; that counts as a "
            "share of a hit"
        )
    if kind == "rewardbench":
        alone = sorted({item.subset for item in items if not item.section})
        if alone:
            said.append(f"{', '.join(alone)} belongs to no section of RewardBench and is in no mean")
    styles = None
    if kind == "rm_bench":
        each = [style_matrix(own) for own in scores]
        styles = [[mean(matrix[i][j] for matrix in each) for j in range(STYLES)] for i in range(STYLES)]
    return BenchResult(kind, judge.name, figures(kind, items, scores), nulls, styles, said, limit)


def _scores(judge: Judging, items: Sequence[Item], conversational: bool, title: str) -> Scores:
    """A number for each answer of each item."""
    found: list[list[float]] = []
    if isinstance(judge, CompareJudge) and any(len(item.answers) != 2 for item in items):
        raise UserError(
            f"{judge.name} compares two answers, and rows of {title} have more: take a judge that scores one answer."
        )
    with Work("rows judged", len(items)) as work:
        for start in range(0, len(items), _AT_A_TIME):
            some = items[start : start + _AT_A_TIME]
            prompts = [prompt_of(item.prompt, conversational) for item in some]
            answers = [[_reply(text, conversational) for text in item.answers] for item in some]
            if isinstance(judge, CompareJudge):
                first = judge.compare(prompts, [pair[0] for pair in answers], [pair[1] for pair in answers])
                found += [[value, 1 - value] for value in first]
            else:
                asked = [(p, text) for p, texts in zip(prompts, answers, strict=True) for text in texts]
                values = iter(judge.score([p for p, _ in asked], [text for _, text in asked]))
                found += [[next(values) for _ in texts] for texts in answers]
            work.add(len(some))
    return found


def _reply(answer: str, conversational: bool) -> str:
    """An answer as a judge reads it."""
    return answer if conversational else str(reply_of(answer, conversational))


def _span(share: Share) -> str:
    if share.interval is None:
        return f"{share.value:.2f}"
    return f"{share.value:.2f} [{share.interval.low:.2f}, {share.interval.high:.2f}]"


def _no_better_than_chance(share: Share) -> bool:
    return share.chance is not None and share.interval is not None and share.interval.low <= share.chance
