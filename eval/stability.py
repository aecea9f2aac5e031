"""Stability of a reward model on preference pairs: the changes, who is asked, and the pairs of a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.data.rows.layouts import blank_lines, bold, bullets, heading
from align.data.rows.rewrites import REWORDINGS, variants
from align.data.rows.sources import load_source
from align.data.rows.text import HH_ASSISTANT, HH_HUMAN
from align.data.rows.values import BadRow, preferred
from align.data.tokens.preparation import plural
from align.data.tokens.samples import Prompt
from align.data.tokens.tokenize import recognise_dataset
from align.errors import UserError
from align.eval.readable import readable, too_long
from align.judges.judge import CompareJudge, ScoreJudge
from align.probes.answer_order import AnswerOrder, answer_order
from align.probes.nulls import NULLS
from align.probes.probe_set import choose_rows
from align.probes.stability import Row, Scores, Side, Stability, accuracy, compare, length_of
from align.recipe.sections import Source

Score = Callable[[Sequence[Prompt], Sequence[str]], list[float]]
_Rewrite = Callable[[str, int], str]  # a text and the number of its pair

PADDING = " I hope that this is of use to you, and please feel free to ask if there is anything else."
_ALONE = 16  # pairs that are also asked one by one
_LAYOUTS = {"bold": bold, "heading": heading, "bullets": bullets, "blank lines": blank_lines}
_KINDS = {
    "slips": ("swapped_letters", "dropped_letter", "doubled_letter", "neighbour_key"),
    "capitals": ("lower_case", "capital_words"),
    "spaces": ("extra_spaces", "no_break_end"),
    "quotes": ("quotation_marks",),
    "rewording": tuple(REWORDINGS),
}


class Pair(NamedTuple):
    """A preference: two answers to one prompt."""

    prompt: Prompt
    chosen: str
    rejected: str

    def asked(self) -> list[tuple[Prompt, str]]:
        """What a model scores."""
        return [(self.prompt, self.chosen), (self.prompt, self.rejected)]


def read_pairs(path: str, rows: int | None, seed: int, say: Callable[[str], Any]) -> list[Pair]:
    """Pairs of any preference file that align reads, ``rows`` of them drawn by ``seed``; what is left out is said.

    Raises ``UserError`` where the file cannot be read, holds no pairs, or none that can be used.
    """
    dataset = load_source(Source(path=path), base=Path())
    raw: list[dict[str, Any]] = list(dataset)
    if not raw:
        raise UserError(f"{path}: holds no rows.")
    try:
        form = recognise_dataset(dataset, ("chosen", "rejected"))
    except UserError as error:
        raise UserError(f"{path}: {str(error).replace('The objective scores', 'The probe needs', 1)}") from error
    if form.tokenised:
        raise UserError(f"{path}: is tokenised already, and a reward model has a tokenizer of its own. Give texts.")
    pairs, left_out = [], dict[str, int]()
    for number in choose_rows(len(raw), len(raw) if rows is None else rows, seed):
        try:
            pairs.append(_pair(form.canonical(raw[number]), preferred(raw[number])))
        except BadRow as reason:
            left_out[str(reason)] = left_out.get(str(reason), 0) + 1
    if not pairs:
        reasons = ", ".join(f"{why} ({plural(count, 'row')})" for why, count in left_out.items())
        raise UserError(f"{path}: none of its rows can be used as a pair: {reasons}.")
    for why, count in left_out.items():
        say(f"{path}: rows left out: {count}, since {why}")
    return pairs


def _pair(row: dict[str, Any], better: str | None) -> Pair:
    """Of a canonical row, with the ``better`` answer first."""
    if better is None:
        raise BadRow("its label is a tie")
    sides = ("chosen", "rejected") if better == "chosen" else ("rejected", "chosen")
    texts = [row[side] if isinstance(row[side], str) else _turn(row[side]) for side in sides]
    if texts[0] == texts[1]:
        raise BadRow("chosen and rejected are the same")
    return Pair(row["prompt"], *texts)


def _turn(answer: list[dict[str, Any]]) -> str:
    text = answer[0].get("content")
    if len(answer) != 1 or not isinstance(text, str) or not text.strip():
        raise BadRow("an answer is not one turn of text")
    return text


def measure(pairs: Sequence[Pair], judge: ScoreJudge, seed: int, say: Callable[[str], Any]) -> Stability:
    """All probes of one model on these pairs, [n] of at least one; it is asked about changed pairs only.

    A pair that is too long for the model, as it is or changed, is left out of everything, so that all figures are of
    the same pairs. Raises ``UserError`` where none is left.
    """
    probes = [
        (name, side, [_changed(pair, side, rewrite, number) for number, pair in enumerate(pairs)])
        for name, side, rewrite in _probes(seed)
    ]
    versions = zip(pairs, *(after for *_, after in probes), strict=True)
    kept = readable(judge, [[row for pair in some for row in pair.asked()] for some in versions], "pair")
    left_out = len(pairs) - len(kept)
    if left_out:
        say(too_long(judge, left_out, "pair"))
    pairs, score = [pairs[i] for i in kept], judge.score
    before, lengths = _scores(pairs, score), _lengths(pairs)
    rows, unchanged = [], []
    for name, side, changed in probes:
        after = [changed[i] for i in kept]
        numbers = [i for i, pair in enumerate(pairs) if after[i] != pair]
        if not numbers:
            unchanged.append(f"{name} ({side})")
            continue
        new = [after[i] for i in numbers]
        found = compare(_some(before, numbers), _scores(new, score), spread=before.spread, seed=seed)
        nulls = {
            null: compare(_times(_some(lengths, numbers), sign), _times(_lengths(new), sign), spread=lengths.spread)
            for null, sign in zip(NULLS, (1, -1), strict=True)
        }
        rows.append(Row(name, side, len(numbers), found, nulls))
    return Stability(
        len(pairs),
        left_out,
        accuracy(before.margin),
        {null: accuracy(sign * lengths.margin) for null, sign in zip(NULLS, (1, -1), strict=True)},
        _order(pairs, score, before),
        length_of(before, lengths),
        rows,
        unchanged,
    )


def measure_order(pairs: Sequence[Pair], judge: CompareJudge, seed: int, say: Callable[[str], Any]) -> AnswerOrder:
    """What a judge that compares makes of the order in which it is shown two answers. Raises ``UserError``."""
    orders = [[(p.prompt, p.chosen, p.rejected), (p.prompt, p.rejected, p.chosen)] for p in pairs]
    kept = readable(judge, orders, "pair")
    left_out = len(pairs) - len(kept)
    if left_out:
        say(too_long(judge, left_out, "pair"))
    pairs = [pairs[i] for i in kept]
    prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
    first = judge.prefer_first(prompts, chosen, rejected)
    second = judge.prefer_first(prompts, rejected, chosen)
    return answer_order(first, second, _lengths(pairs), too_long=left_out, seed=seed)


def _probes(seed: int) -> list[tuple[str, Side, _Rewrite]]:
    """Name, which part is changed, and how."""
    out: list[tuple[str, Side, _Rewrite]] = [("padding", "rejected", lambda text, _: text.rstrip() + PADDING)]
    for name, layout in _LAYOUTS.items():
        change = _numberless(layout)
        out += [(name, "rejected", change), (name, "both", change)]
    for name, kinds in _KINDS.items():
        rewrite = _variant(kinds, seed)
        out += [(name, "both", rewrite), (name, "prompt", rewrite)]
    return out


def _numberless(layout: Callable[[str], str]) -> _Rewrite:
    return lambda text, _: layout(text)


def _variant(kinds: Sequence[str], seed: int) -> _Rewrite:
    """A variant of one of the kinds, which take turns from pair to pair; the text itself where there is none."""

    def rewrite(text: str, number: int) -> str:
        turn = number % len(kinds)
        return next(iter(variants(text, 1, seed, [*kinds[turn:], *kinds[:turn]])), text)

    return rewrite


def _changed(pair: Pair, side: Side, rewrite: _Rewrite, number: int) -> Pair:
    if side == "prompt":
        return pair._replace(prompt=_last_request(pair.prompt, lambda text: rewrite(text, number)))
    chosen = rewrite(pair.chosen, number) if side == "both" else pair.chosen
    return Pair(pair.prompt, chosen, rewrite(pair.rejected, number))


def _last_request(prompt: Prompt, change: Callable[[str], str]) -> Prompt:
    """The prompt with the last text of the user changed: a message, a turn of a transcript, or the whole of a text."""
    if isinstance(prompt, str):
        start, end = prompt.rfind(HH_HUMAN), prompt.rfind(HH_ASSISTANT)
        if not 0 <= start < end:
            return change(prompt)
        start += len(HH_HUMAN)
        return prompt[:start] + change(prompt[start:end]) + prompt[end:]
    asked = [i for i, message in enumerate(prompt) if message["role"] == "user" and isinstance(message["content"], str)]
    if not asked:
        return prompt
    last = asked[-1]
    return [*prompt[:last], {**prompt[last], "content": change(prompt[last]["content"])}, *prompt[last + 1 :]]


def _scores(pairs: Sequence[Pair], score: Score) -> Scores:
    """Both answers of all pairs in one question."""
    prompts = [pair.prompt for pair in pairs]
    found = score([*prompts, *prompts], [*(p.chosen for p in pairs), *(p.rejected for p in pairs)])
    return Scores(found[: len(pairs)], found[len(pairs) :])


def _lengths(pairs: Sequence[Pair]) -> Scores:
    """Characters of every answer."""
    return Scores([float(len(pair.chosen)) for pair in pairs], [float(len(pair.rejected)) for pair in pairs])


def _some(scores: Scores, numbers: Sequence[int]) -> Scores:
    return Scores([scores.chosen[i] for i in numbers], [scores.rejected[i] for i in numbers])


def _times(scores: Scores, sign: int) -> Scores:
    return Scores([sign * value for value in scores.chosen], [sign * value for value in scores.rejected])


def _order(pairs: Sequence[Pair], score: Score, before: Scores) -> float:
    """The largest change of a score in reverse order, and of the first pairs one answer at a time, over the spread."""
    back = _scores(pairs[::-1], score)
    gaps = [abs(a - b) for a, b in zip(before.chosen, back.chosen[::-1], strict=True)]
    gaps += [abs(a - b) for a, b in zip(before.rejected, back.rejected[::-1], strict=True)]
    for i, pair in enumerate(pairs[:_ALONE]):
        gaps.append(abs(score([pair.prompt], [pair.chosen])[0] - before.chosen[i]))
        gaps.append(abs(score([pair.prompt], [pair.rejected])[0] - before.rejected[i]))
    return max(gaps) / before.spread
