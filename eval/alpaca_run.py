"""A model through AlpacaEval: it answers the instructions, a judge compares, and every answer and verdict is a file.

Both go over all processes of a launcher. What is there is never done again, so a call that was killed goes on when it
is made again: answers are kept in parts, and verdicts under a digest of what was compared and by whom.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.data.tokens.preparation import plural
from align.errors import UserError
from align.eval.alpaca_eval import AlpacaResult, figures
from align.eval.alpaca_figures import Anchors, position_bias
from align.eval.alpaca_judge import agreement, annotator, early_official, is_switched, load_official, prefer
from align.eval.alpaca_rows import annotations_of, difficulty_and_anchors
from align.eval.answers import Drawing, draw
from align.eval.kept import Kept
from align.judges.calls import CALLS
from align.judges.identity import identity
from align.judges.judge import CompareJudge, Judging
from align.judges.loading import judging
from align.recipe.sampling import Judge
from align.runs.files import write_atomically
from align.runs.processes import World, free

OUTPUTS, ANNOTATIONS, RESULT = "model_outputs.json", "annotations.json", "result.json"
PART = 16  # pairs that are judged at a time and kept together
Say = Callable[[str], Any]
Outputs = Mapping[str, Mapping[str, Any]]  # answers in the official layout, by instruction


@dataclass(frozen=True)
class Setup:
    """What is evaluated, and how.

    Attributes:
        reference: answers of the reference; their instructions are those that are asked.
        folder: where answers, verdicts and the result go.
        drawing: how the model's answers are drawn.
        agreement: how many pairs are judged in the other order as well.
        limit: only so many instructions, which is a trial.
    """

    reference: Outputs
    folder: Path
    drawing: Drawing
    agreement: int = 0
    limit: int | None = None

    @property
    def instructions(self) -> list[str]:
        """Those that are asked, in the reference's order."""
        return list(self.reference)[: self.limit]


def evaluate(
    setup: Setup,
    answered: str | Outputs,
    settings: Judge,
    difficulty: str | None,
    anchors: str | None,
    *,
    subset: bool = False,
    base: Path,
    allow_code: bool = False,
    world: World,
    say: Say,
) -> AlpacaResult | None:
    """A model, or answers that are there, through AlpacaEval. Every process calls it; the first has the result.

    Args:
        settings: of the judge; ``base`` is where its relative paths start.
        difficulty, anchors: files or Hub ids; None for the official ones.

    Raises:
        UserError: where the judge, an answer or a file cannot be had; what was done by then is kept.
    """
    say(f"{len(setup.instructions):,} instructions; answers, verdicts and the result go to {setup.folder}")
    how: Any = {"base": base, "allow_code": allow_code, "world": world, "say": say}
    judge = early_official(settings, setup.folder / CALLS, **how)
    if isinstance(answered, str):
        outputs = answers(setup, answered, world, say)
        free()  # the judge may need the memory
    else:
        outputs = answered
    with judging():
        asked = judge if judge is not None else load_official(settings, setup.folder / CALLS, **how)
        rows = judged(setup, outputs, asked, identity(settings, base), world, say)
        if world.rank:
            return None
        return conclude(setup, rows, asked, *difficulty_and_anchors(difficulty, anchors), subset=subset)


def answers(setup: Setup, model: str, world: World, say: Say) -> Outputs:
    """Answers of a model, drawn where they are not there yet, and written in the official layout.

    Every process calls it. Raises ``UserError`` as ``draw`` does, and where an instruction cannot be answered.
    """
    texts = setup.instructions
    found = draw(model, texts, setup.folder / "answers.jsonl", setup.drawing, world, say)
    if missing := [text for text, answer in zip(texts, found, strict=True) if answer is None]:
        raise UserError(
            f"{plural(len(missing), 'instruction')} left without an answer, such as {missing[0][:60]!r}: too long for "
            "the model. A win rate over the others would be another one."
        )
    rows = [
        {"instruction": text, "output": answer, "generator": model} for text, answer in zip(texts, found, strict=True)
    ]
    if world.rank == 0:
        write_atomically(setup.folder / OUTPUTS, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return {str(row["instruction"]): row for row in rows}


def of_set(outputs: Outputs, setup: Setup, where: str) -> Outputs:
    """The answers to the instructions that are asked. Raises ``UserError`` where one is not there."""
    missing = [text for text in setup.instructions if text not in outputs]
    if missing:
        raise UserError(
            f"{where}: {plural(len(missing), 'instruction')} of {len(setup.instructions):,} without an answer, such as "
            f"{missing[0][:60]!r}. Answers are joined by the exact instruction; give them all, or fewer with --limit."
        )
    return {text: outputs[text] for text in setup.instructions}


def judged(setup: Setup, outputs: Outputs, judge: Judging, about: Any, world: World, say: Say) -> list[dict[str, Any]]:
    """Rows in the layout of official annotations. Every process calls it and has them all.

    Args:
        about: the judge's ``identity``, by which its verdicts are kept.

    Raises:
        UserError: as the judge does; what it has judged by then is kept.
    """
    texts = setup.instructions

    def ask(some: Sequence[int]) -> list[float | None]:
        part = [texts[i] for i in some]
        values = prefer(judge, part, _texts(outputs, part), _texts(setup.reference, part))
        return [None if math.isnan(value) else value for value in values]

    compared = [[text, outputs[text]["output"], setup.reference[text]["output"]] for text in texts]
    kept = Kept(setup.folder / "judged", world, say, PART)
    found = kept(compared, [annotator(judge), about], ask, what="answers judged", done="judged", sound=is_preference)
    return [_row(setup, text, outputs, judge, value) for text, value in zip(texts, found, strict=True)]


def is_preference(value: Any) -> bool:
    """Whether a verdict that was kept is one: from 0 to 1, or None for none."""
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)


def _texts(outputs: Outputs, instructions: Sequence[str]) -> list[str]:
    return [str(outputs[text]["output"]) for text in instructions]


def _row(setup: Setup, text: str, outputs: Outputs, judge: Judging, value: float | None) -> dict[str, Any]:
    theirs, ours = setup.reference[text], outputs[text]
    return {
        "instruction": text,
        "output_1": theirs["output"],
        "generator_1": str(theirs.get("generator", "")),
        "output_2": ours["output"],
        "generator_2": str(ours.get("generator", "")),
        "annotator": annotator(judge),
        "is_switched_outputs": is_switched(text),
        "preference": None if value is None else 1 + value,
    }


def conclude(
    setup: Setup,
    rows: Sequence[Mapping[str, Any]],
    judge: Judging,
    difficulty: dict[int, float] | str,
    anchors: Anchors | str,
    *,
    subset: bool = False,
) -> AlpacaResult:
    """The figures, with what tells about the judge, written beside the annotations. On the first process."""
    result = figures(annotations_of(rows, ANNOTATIONS), difficulty, anchors, subset=subset, limit=setup.limit)
    if isinstance(judge, CompareJudge):
        values = [math.nan if row["preference"] is None else row["preference"] - 1 for row in rows]
        bias = position_bias(values, [row["is_switched_outputs"] for row in rows])
        result = replace(result, position_bias=bias)
        if setup.agreement:
            chosen = sorted(random.Random(setup.drawing.seed).sample(range(len(rows)), min(setup.agreement, len(rows))))
            some = [rows[i] for i in chosen]
            columns = [[row[key] for row in some] for key in ("instruction", "output_2", "output_1")]
            result = replace(result, agreement=agreement(judge, *columns, [values[i] for i in chosen]))
    write_atomically(setup.folder / ANNOTATIONS, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    write_atomically(setup.folder / RESULT, json.dumps(result.to_json(), indent=1) + "\n")
    return result
