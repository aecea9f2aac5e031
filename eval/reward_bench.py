"""A judge on a public benchmark of reward models, beside two null models that know nothing but how long answers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from align.data.rows.questions import prompt_of, reply_of
from align.errors import UserError
from align.eval.readable import Asked, readable, too_long
from align.eval.result import limited, mark
from align.eval.reward_bench_figures import Scores, Share, figures, style_matrix, ties
from align.eval.reward_bench_rows import STYLES, TITLES, Item, Kind
from align.judges.judge import CompareJudge, Judging
from align.probes.nulls import not_above, span
from align.runs.terminal import Work

_AT_A_TIME = 64  # items between two signs of progress
NULLS = {"longest": 1.0, "shortest": -1.0}  # times the number of characters


@dataclass(frozen=True)
class BenchResult:
    """Figures of a judge by name, and of the null models by their names and the figure's.

    ``too_long`` is the number of rows that were left out, since the judge does not read so many tokens.
    ``styles`` is RM-Bench's matrix over all items, rows the chosen answer's style. ``notes`` is what a reader must
    know, ``limit`` the items of each subset that a trial took.
    """

    kind: Kind
    judge: str
    found: dict[str, Share]
    nulls: dict[str, dict[str, Share]]
    too_long: int = 0
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
            nulls = {null: values[name].value for null, values in self.nulls.items()}
            if sentence := not_above(name, own.value, own.interval, nulls):
                said.append(sentence)
            elif own.chance is not None and own.interval is not None and own.interval.low <= own.chance:
                said.append(f"chance: {name} {span(own.value, own.interval)} is not above it ({own.chance:.3f}).")
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
            "too_long": self.too_long,
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
            f"{'figure':<{width}}  {'judge':>5}  {'95% interval':<12}  {'chance':>6}  {'longest':>7}  "
            f"{'shortest':>8}  {'rows':>5}",
        ]
        for name, own in self.found.items():
            span = "" if own.interval is None else f"{own.interval.low:.2f} to {own.interval.high:.2f}"
            longest, shortest = (self.nulls[null][name].value for null in NULLS)
            chance = "-" if own.chance is None else f"{own.chance:.2f}"
            out.append(
                f"{name:<{width}}  {own.value:>5.2f}  {span:<12}  {chance:>6}  {longest:>7.2f}  {shortest:>8.2f}  "
                f"{own.n:>5}" + ("  !" if self.matched_by(name) else "")
            )
        if self.styles is not None:
            out += ["", "accuracy by style of the chosen answer (rows) and of the rejected one (columns)"]
            names = ("concise", "detailed", "markdown")
            out.append(f"{'':<8}  " + "  ".join(f"{name:>8}" for name in names))
            for name, row in zip(names, self.styles, strict=True):
                out.append(f"{name:<8}  " + "  ".join(f"{value:>8.2f}" for value in row))
        if said := self.sentences():
            out += ["", *said]
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
    """Ask a judge all answers of a benchmark's items; items that are too long for it are left out and counted.

    Args:
        judge: one that scores; one that compares can answer only where each item is a pair.
        conversational: whether questions are put as turns, as to a model with a chat template; see ``prompt_of``.
        notes: what was said when the items were read.
        limit: see ``load_benchmark``.

    Raises:
        UserError: where the judge cannot answer, or as the judge raises it.
    """
    asked = _asked(judge, items, conversational, TITLES[kind])
    kept = readable(judge, asked, "row")
    left_out, items = len(items) - len(kept), [items[i] for i in kept]
    scores = _scores(judge, [asked[i] for i in kept])
    nulls = {
        name: figures(kind, items, [[sign * len(text) for text in item.answers] for item in items])
        for name, sign in NULLS.items()
    }
    said = [*notes, *([too_long(judge, left_out, "row")] if left_out else [])]
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
    return BenchResult(kind, judge.name, figures(kind, items, scores), nulls, left_out, styles, said, limit)


def _asked(judge: Judging, items: Sequence[Item], conversational: bool, title: str) -> list[Asked]:
    """Of each item every answer with its prompt; for a judge that compares, both orders of its two answers."""
    compares = isinstance(judge, CompareJudge)
    if compares and any(len(item.answers) != 2 for item in items):
        raise UserError(
            f"{judge.name} compares two answers, and rows of {title} have more: take a judge that scores one answer."
        )
    asked: list[Asked] = []
    for item in items:
        prompt = prompt_of(item.prompt, conversational)
        answers = [_reply(text, conversational) for text in item.answers]
        together = (answers, answers[::-1]) if compares else [[text] for text in answers]
        asked.append([(prompt, *texts) for texts in together])
    return asked


def _scores(judge: Judging, asked: Sequence[Asked]) -> Scores:
    """A number for each answer of each item."""
    found: list[list[float]] = []
    with Work("rows judged", len(asked)) as work:
        for start in range(0, len(asked), _AT_A_TIME):
            some = asked[start : start + _AT_A_TIME]
            if isinstance(judge, CompareJudge):
                prompts, a, b = zip(*(rows[0] for rows in some), strict=True)
                found += [[value, 1 - value] for value in judge.compare(prompts, a, b)]
            else:
                prompts, answers = zip(*(row for rows in some for row in rows), strict=True)
                values = iter(judge.score(prompts, answers))
                found += [[next(values) for _ in rows] for rows in some]
            work.add(len(some))
    return found


def _reply(answer: str, conversational: bool) -> str:
    """An answer as a judge reads it."""
    return answer if conversational else str(reply_of(answer, conversational))
