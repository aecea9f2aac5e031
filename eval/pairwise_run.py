"""``align eval pairwise``: both models answer the prompts, a judge compares, and all of it is kept in one folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.rows.sources import load_source
from align.data.rows.values import BadRow, messages, string
from align.data.tokens.preparation import plural
from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.eval.alpaca_run import is_preference
from align.eval.answers import Drawing, draw
from align.eval.kept import Kept
from align.eval.pairwise import PairwiseResult, Verdict, compare, figures, outcome
from align.eval.readable import readable, too_long
from align.judges.endpoint import EndpointJudge
from align.judges.judge import CompareJudge, Judging
from align.recipe.sections import Source
from align.runs.files import write_atomically
from align.runs.processes import World, free

VERDICTS, RESULT = "verdicts.json", "result.json"
_PART = 16  # prompts that are judged at a time and kept together
_COLUMNS = ("prompt", "instruction", "question")
Say = Callable[[str], Any]


@dataclass(frozen=True)
class Pairing:
    """Two models, the prompts that both answer, how, and the folder of all files; ``limit`` marks a trial."""

    models: tuple[str, str]
    prompts: Sequence[Prompt]
    folder: Path
    drawing: Drawing
    limit: int | None = None


def read_prompts(source: Source, say: Say) -> list[Prompt]:
    """The prompts of rows, each once: a text or messages as ``prompt``, or a text as ``instruction`` or ``question``.

    Raises:
        UserError: naming the row that has none.
    """
    where = source.path or source.id
    found: dict[str, Prompt] = {}
    count = 0
    for number, row in enumerate(load_source(source, base=Path()), 1):
        key = next((key for key in _COLUMNS if row.get(key) is not None), None)
        if key is None:
            there = ", ".join(repr(name) for name in list(row)[:8] if name != "row")
            raise UserError(f"{where}, row {number}: expected a prompt, an instruction or a question; it has {there}.")
        try:
            prompt: Prompt = string(row, key) if isinstance(row[key], str) else messages(row, key)
        except BadRow as error:
            raise UserError(f"{where}, row {number}: {error}; mend or remove the row.") from None
        found.setdefault(json.dumps(prompt, sort_keys=True), prompt)
        count += 1
    if count > len(found):
        say(f"{plural(count - len(found), 'prompt')} left out: the same as an earlier one")
    return list(found.values())


def answers(pairing: Pairing, world: World, say: Say) -> tuple[list[Prompt], list[str], list[str], list[str]]:
    """Prompts that both models answered, both lists of answers, and notes on what was left out.

    Every process calls it. Raises ``UserError`` as ``draw`` does, and where no prompt is left.
    """
    drawn = []
    for letter, model in zip("ab", pairing.models, strict=True):
        say(f"{letter.upper()}: {model}")
        file = pairing.folder / f"{letter}.jsonl"
        drawn.append(draw(model, pairing.prompts, file, pairing.drawing, world, say))
        free()  # the next model, or the judge, may need the memory
    both = [row for row in zip(pairing.prompts, *drawn, strict=True) if None not in row]
    if not both:
        raise UserError("No prompt has an answer of both models: all are too long for one of them. Give shorter ones.")
    missing = len(pairing.prompts) - len(both)
    notes = [f"{plural(missing, 'prompt')} left out: too long for one of the models"] if missing else []
    prompts, a, b = (list(column) for column in zip(*both, strict=True))
    return prompts, a, b, notes


def judged(
    pairing: Pairing,
    judge: Judging,
    about: Any,
    prompts: Sequence[Prompt],
    a: Sequence[str],
    b: Sequence[str],
    notes: Sequence[str],
    world: World,
    say: Say,
) -> PairwiseResult:
    """Judge what both models answered, and write rows and figures. Every process calls it and has the result.

    Args:
        about: the judge's ``identity``, by which its verdicts are kept.

    Raises:
        UserError: as the judge does; what it has judged by then is kept.
    """
    if isinstance(judge, EndpointJudge):
        judge.neither = math.nan  # an answer with neither letter is no tie
    rows = [list(row) for row in zip(prompts, a, b, strict=True)]
    orders = isinstance(judge, CompareJudge)
    items = [[(p, x, y), (p, y, x)] if orders else [(p, x), (p, y)] for p, x, y in rows]
    fitting = readable(judge, items, "prompt")
    said = [*notes, *([too_long(judge, len(rows) - len(fitting), "prompt")] if len(fitting) < len(rows) else [])]
    rows = [rows[i] for i in fitting]
    prompts, a, b = (list(column) for column in zip(*rows, strict=True))

    def ask(some: Sequence[int]) -> list[list[float | None]]:
        asked = ([column[i] for i in some] for column in (prompts, a, b))
        return [list(verdict) for verdict in compare(judge, *asked)]

    kept = Kept(pairing.folder / "judged", world, say, _PART)
    found = kept(rows, [judge.name, about], ask, what="pairs judged", done="judged", sound=_is_verdict)
    verdicts: list[Verdict] = [(first, second) for first, second in found]
    result = figures(pairing.models, judge, verdicts, a, b, notes=said, limit=pairing.limit)
    if world.rank == 0:
        table = [
            {"prompt": p, "a": x, "b": y, "a_first": v[0], "a_second": v[1], "outcome": outcome(v)}
            for (p, x, y), v in zip(rows, verdicts, strict=True)
        ]
        write_atomically(pairing.folder / VERDICTS, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        write_atomically(pairing.folder / RESULT, json.dumps(result.to_json(), indent=1) + "\n")
    return result


def _is_verdict(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_preference, value))
