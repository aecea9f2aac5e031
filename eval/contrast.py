"""Contrast pairs from files, and how they are put to a judge.

Three layouts are read, from JSON, JSON lines, CSV, TSV and Parquet, also gzipped:

- the authors' (github.com/shadowkiller33/Contrast-Instruction): ``query``, ``retrieval``, and two answers to each of
  them, ``query_response_j`` and so on. Their README calls k the preferred answer and their scripts score k. In their
  data j is the preferred one (score_j > score_k in every row of the Twitter preferences), as the paper means it.
- ``instruction_j``, ``response_j``, ``instruction_k``, ``response_k``: two bare instructions with an answer each.
- ``prompt_j``, ``response_j``, ``prompt_k``, ``response_k``: the same with whole prompts, texts or messages, which are
  put to the judge as they are; ``save`` writes this one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from align.data.rows import world
from align.data.rows.files import read_rows
from align.data.rows.values import BadRow, messages, string
from align.errors import UserError
from align.probes.consistency import ContrastPair, Prompt
from align.runs.files import write_atomically

Response = Literal["j", "k"]
_RELEASED = ("query", "query_response_{r}", "retrieval", "retrieval_response_{r}")
_BARE = ("instruction_j", "response_j", "instruction_k", "response_k")
_WHOLE = ("prompt_j", "response_j", "prompt_k", "response_k")
_INSTRUCTION, _RESPONSE = "{instruction}", "{response}"


@dataclass(frozen=True)
class Contrasts:
    """A set of pairs.

    Attributes:
        source: what it was read or built from, for people.
        pairs: as they are put to the judge.
        form: how instructions and answers are put, for people.
        dropped: why items were left out, and how many.
        about: further facts for the result, such as the encoder and the band.
    """

    source: str
    pairs: list[ContrastPair]
    form: str
    dropped: Counter[str] = field(default_factory=Counter)
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """How a bare instruction and its answer become what a judge reads.

    Attributes:
        kind: ``chat`` for a user's turn, ``question`` for the lines ``Question:`` and ``Answer:`` (as questions are put
            everywhere here to a model without a chat template), ``text`` for both as they are, one after the other.
        template: text with ``{instruction}`` in it, the same for all. One that is given with ``{response}`` at its end
            is the whole text: that is taken off, and ``kind`` is ``text``.
    """

    kind: Literal["chat", "question", "text"]
    template: str = _INSTRUCTION

    @classmethod
    def of(cls, tokenizer: Any | None, template: str | None) -> Form:
        """The form for a judge with this tokenizer; a judge without one, a function, gets texts as they are.

        Raises ``UserError`` for a template that lacks ``{instruction}``, or goes on behind ``{response}``.
        """
        kind: Any = "text" if tokenizer is None else "chat" if tokenizer.chat_template else "question"
        if template is None:
            return cls(kind)
        head, whole, tail = template.partition(_RESPONSE)
        if template.count(_INSTRUCTION) != 1 or _INSTRUCTION not in head or tail:
            raise UserError(
                f"--template {template!r}: expected one {_INSTRUCTION}, and at the end {_RESPONSE} or nothing, as in "
                f"'Please paraphrase: {_INSTRUCTION}'."
            )
        return cls("text" if whole else kind, head)

    def put(self, instruction: str, response: str) -> tuple[Prompt, str]:
        """Prompt and answer for a judge."""
        text = self.filled(instruction)
        if self.kind == "chat":
            return [{"role": "user", "content": text}], response
        if self.kind == "question":
            return world.prompt(text), world.completion(response)
        return text, response

    def put_whole(self, prompt: Prompt) -> Prompt:
        """A whole prompt, in which only the last turn, or the text, is put into the template."""
        if isinstance(prompt, str):
            return self.filled(prompt)
        return [*prompt[:-1], {**prompt[-1], "content": self.filled(prompt[-1]["content"])}]

    def filled(self, instruction: str) -> str:
        """The template with an instruction in it, which may hold braces of its own."""
        return self.template.replace(_INSTRUCTION, instruction)

    def line(self, *, whole: bool) -> str:
        """What is said of how bare instructions, or whole prompts, are put."""
        if whole:
            text = "as they are" if self.template == _INSTRUCTION else f"with {self.template!r} around the last turn"
            return f"prompts are put {text}, the answer behind them"
        if self.kind == "chat":
            return f"instructions are put as a user's turn: {self.template!r}"
        prompt, response = self.put(_INSTRUCTION, _RESPONSE)
        return f"instructions and answers are put as one text: {str(prompt) + response!r}"


def read_pairs(path: Path, form: Form, response: Response | None = None) -> Contrasts:
    """The pairs of a file. Those of equal instructions or equal answers, and repeated items, are dropped and counted.

    Args:
        response: which answer of the authors' layout, ``j`` by default; the others have no such choice.

    Raises:
        UserError: where the file cannot be read, has other columns, or a row lacks a text.
    """
    columns: tuple[str, ...] | None = None
    items: list[ContrastPair] = []
    for number, row in enumerate(read_rows(path)):
        columns = columns or _columns(path, row, response)
        try:
            items.append(_pair(row, columns, form))
        except BadRow as error:
            raise UserError(f"{path}: row {number}: {error}; mend or remove the row.") from None
    kept, dropped = _usable(items)
    if not kept:
        raise UserError(f"{path}: no pair is left of {len(items)} ({listed(dropped)}).")
    layout = columns[0] if columns else ""
    chosen = {"response": response or "j"} if layout == _RELEASED[0] else {}
    return Contrasts(str(path), kept, form.line(whole=layout == _WHOLE[0]), dropped, chosen)


def save(pairs: Iterable[ContrastPair], path: Path) -> None:
    """Write pairs as JSON lines that ``read_pairs`` reads as they are. Raises ``UserError``."""
    lines = [
        dict(zip(_WHOLE, (p.instruction_1, p.response_1, p.instruction_2, p.response_2), strict=True)) for p in pairs
    ]
    try:
        write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error


def plain(text: str) -> str:
    """A text by which equality is told: without case, and with single blanks."""
    return " ".join(text.split()).casefold()


def said(contrasts: Contrasts) -> str:
    """How many pairs there are, and what was dropped."""
    dropped = f"; dropped {listed(contrasts.dropped)}" if contrasts.dropped else ""
    return f"{len(contrasts.pairs):,} contrast pairs from {contrasts.source}{dropped}"


def listed(dropped: Mapping[str, int]) -> str:
    """Counts in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())


def _columns(path: Path, row: Mapping[str, Any], response: Response | None) -> tuple[str, ...]:
    """The columns that are read, by those of the first row. Raises ``UserError``."""
    released = tuple(name.format(r=response or "j") for name in _RELEASED)
    layouts: tuple[tuple[str, ...], ...] = (released, _BARE, _WHOLE)
    columns = next((layout for layout in layouts if {layout[0], layout[2]} & set(row)), ())
    if response and columns in (_BARE, _WHOLE):
        raise UserError(
            f"{path}: --response chooses between two answers to an instruction, and these rows have one each: leave it "
            "out."
        )
    missing = [name for name in columns if name not in row]
    if columns and not missing:
        return columns
    if columns:
        raise UserError(
            f"{path}: row 0: there is no column {missing[0]}. The columns are: {', '.join(row)}; expected "
            f"{', '.join(columns)}."
        )
    raise UserError(_other_columns(path, row))


def _other_columns(path: Path, row: Mapping[str, Any]) -> str:
    names = ", ".join(row)
    if isinstance(row.get("chosen"), list) and all(isinstance(answer, str) for answer in row["chosen"]):
        return (
            f"{path}: row 0: these are the columns of a benchmark with several chosen and rejected answers, such as "
            f"RM-Bench ({names}), not contrast pairs: align probe benchmark reads them."
        )
    if {"chosen", "rejected"} <= set(row) or {"response_j", "response_k"} <= set(row):
        return (
            f"{path}: row 0: these are preference pairs ({names}), not contrast pairs: build contrast pairs from them, "
            "with --from in place of --pairs."
        )
    return (
        f"{path}: row 0: these are not contrast pairs ({names}). Expected {', '.join(_BARE)}, or the released layout "
        f"with {', '.join(name.format(r='j') for name in _RELEASED)}; from preference pairs they are built with --from."
    )


def _pair(row: Mapping[str, Any], columns: Sequence[str], form: Form) -> ContrastPair:
    """One item as it is put to the judge. Raises ``BadRow``."""
    sides: list[Any] = []
    for asked, answered in (columns[:2], columns[2:]):
        response = string(row, answered)
        if columns[0] != _WHOLE[0]:
            sides += form.put(string(row, asked), response)
            continue
        prompt: Prompt = string(row, asked) if isinstance(row.get(asked), str) else messages(row, asked)
        if not isinstance(prompt, str) and prompt[-1]["role"] != "user":
            raise BadRow(f"{asked} does not end with a user's turn")
        sides += [form.put_whole(prompt), response]
    return ContrastPair(*sides)


def _usable(items: Iterable[ContrastPair]) -> tuple[list[ContrastPair], Counter[str]]:
    """Pairs that can be told apart, each once in the same order, and why the others cannot."""
    kept: dict[Any, ContrastPair] = {}
    dropped: Counter[str] = Counter()
    for pair in items:
        (asked, answer), (other, contrast) = pair.sides()
        if plain(asked) == plain(other):
            dropped["with equal instructions"] += 1
        elif plain(answer) == plain(contrast):
            dropped["with equal answers"] += 1
        elif pair.sides() in kept:
            dropped["that stand in the file already"] += 1
        else:
            kept[pair.sides()] = pair
    return list(kept.values()), dropped
