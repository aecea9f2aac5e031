"""A model through AlpacaEval: it answers the instructions, a judge compares, and every answer and verdict is a file.

Both go over all processes of a launcher. What is there is never done again, so a call that was killed goes on when it
is made again: answers are kept in parts, and verdicts under a digest of what was compared and by whom.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from align.data.rows.files import read_rows
from align.data.tokens.preparation import plural
from align.errors import UserError
from align.eval.alpaca_eval import AlpacaResult, figures
from align.eval.alpaca_figures import Anchors, position_bias
from align.eval.alpaca_judge import agreement, annotator, is_switched, prefer
from align.eval.alpaca_rows import annotations_of, read_outputs
from align.judges.judge import CompareJudge, Judging
from align.models.load import checkpoint_tokenizer
from align.outside.files import json_file
from align.outside.limits import JSON
from align.recipe.sampling import Sampling
from align.recipe.sections import Source
from align.runs.files import write_atomically
from align.runs.processes import World
from align.runs.terminal import Work
from align.sampling.best_of import sample
from align.sampling.job import Job
from align.sampling.parts import manifest

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
        sampling: of the model; one answer each.
        agreement: how many pairs are judged in the other order as well.
        limit: only so many instructions, which is a trial.
    """

    reference: Outputs
    folder: Path
    sampling: Sampling = field(default_factory=lambda: Sampling(samples=1, max_new_tokens=2048))
    seed: int = 0
    system: str | None = None
    agreement: int = 0
    limit: int | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def instructions(self) -> list[str]:
        """Those that are asked, in the reference's order."""
        return list(self.reference)[: self.limit]


def answers(setup: Setup, model: str, world: World, say: Say) -> Outputs:
    """Answers of a model, drawn where they are not there yet, and written in the official layout.

    Every process calls it. Raises ``UserError`` as ``align sample`` does, and where an instruction cannot be answered.
    """
    file, drawn = setup.folder / OUTPUTS, setup.folder / "answers.jsonl"
    if file.is_file():
        say(f"answers: those of {file}")
        return of_set(read_outputs(file), setup, str(file))
    if not drawn.is_file():
        source = setup.folder / "instructions.jsonl"
        world.together(lambda: _write_prompts(setup, model, source, say) if world.rank == 0 else None)
        job = Job(
            source=Source(path=str(source), system=setup.system),
            model=model,
            out=drawn,
            sampling=setup.sampling,
            seed=setup.seed,
            template_arguments=setup.template_arguments,
        )
        sample(job, resume=manifest(drawn).is_file(), again="when it is made again", say=say)
    world.together(lambda: _write_outputs(setup, model, drawn, file) if world.rank == 0 else None)
    return of_set(read_outputs(file), setup, str(file))


def _write_prompts(setup: Setup, model: str, file: Path, say: Say) -> None:
    """The instructions as a user's turns; as plain text where the model knows no turns."""
    chats = checkpoint_tokenizer(model).chat_template is not None
    if not chats:
        say("note: the tokenizer has no chat template, so the model goes on from the plain instruction")
    rows = [{"prompt": [{"role": "user", "content": text}] if chats else text} for text in setup.instructions]
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))


def _write_outputs(setup: Setup, model: str, drawn: Path, file: Path) -> None:
    """The official layout from what ``align sample`` wrote."""
    found: dict[str, str] = {}
    for row in read_rows(drawn):
        asked, reply = row["prompt"], row["completion"]
        # the last turn: a system message may stand before it
        found[asked if isinstance(asked, str) else asked[-1]["content"]] = (
            reply if isinstance(reply, str) else reply[0]["content"]
        )
    if missing := [text for text in setup.instructions if text not in found]:
        raise UserError(
            f"{plural(len(missing), 'instruction')} left without an answer, such as {missing[0][:60]!r}: too long for "
            "the model. A win rate over the others would be another one."
        )
    rows = [{"instruction": text, "output": found[text], "generator": model} for text in setup.instructions]
    write_atomically(file, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def of_set(outputs: Outputs, setup: Setup, where: str) -> Outputs:
    """The answers to the instructions that are asked. Raises ``UserError`` where one is not there."""
    missing = [text for text in setup.instructions if text not in outputs]
    if missing:
        raise UserError(
            f"{where}: {plural(len(missing), 'instruction')} of {len(setup.instructions):,} without an answer, such as "
            f"{missing[0][:60]!r}. Answers are joined by the exact instruction; give them all, or fewer with --limit."
        )
    return {text: outputs[text] for text in setup.instructions}


def judged(setup: Setup, outputs: Outputs, judge: Judging, world: World, say: Say) -> list[dict[str, Any]]:
    """Rows in the layout of official annotations. Every process calls it and has them all.

    Raises:
        UserError: as the judge does; what it has judged by then is kept.
    """
    texts = setup.instructions
    parts = [texts[start : start + PART] for start in range(0, len(texts), PART)]
    files = [_verdicts(setup, part, outputs, judge) for part in parts]
    there = [_kept(file, part) is not None for file, part in zip(files, parts, strict=True)]
    world.together(lambda: None)  # all have looked before one writes
    mine = [i for i in range(world.rank, len(parts), world.size) if not there[i]]
    if any(there):
        say(f"judged before: {sum(there):,} of {len(parts):,} parts")

    def work() -> None:
        with Work("answers judged", sum(len(parts[i]) for i in mine)) as shown:
            for i in mine:
                values = prefer(judge, parts[i], _texts(outputs, parts[i]), _texts(setup.reference, parts[i]))
                known = [None if math.isnan(value) else value for value in values]
                write_atomically(files[i], json.dumps(known))
                shown.add(len(parts[i]))

    world.together(work)
    found = [value for file, part in zip(files, parts, strict=True) for value in _kept(file, part) or ()]
    return [_row(setup, text, outputs, judge, value) for text, value in zip(texts, found, strict=True)]


def _verdicts(setup: Setup, part: Sequence[str], outputs: Outputs, judge: Judging) -> Path:
    """Where the verdicts of a part are; another judge or another answer is another file."""
    compared = [[text, outputs[text]["output"], setup.reference[text]["output"]] for text in part]
    key = hashlib.sha256(json.dumps([annotator(judge), compared]).encode()).hexdigest()
    return setup.folder / "judged" / f"{key[:24]}.json"


def _kept(file: Path, part: Sequence[str]) -> list[float | None] | None:
    """The verdicts of a part; None where there are none, or none that can be read: then it is judged again."""
    try:
        found = json_file(file, JSON)
    except (OSError, ValueError):
        return None
    whole = isinstance(found, list) and len(found) == len(part)
    sound = whole and all(one is None or (isinstance(one, int | float) and 0 <= one <= 1) for one in found)
    return found if sound else None


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
            chosen = sorted(random.Random(setup.seed).sample(range(len(rows)), min(setup.agreement, len(rows))))
            some = [rows[i] for i in chosen]
            columns = [[row[key] for row in some] for key in ("instruction", "output_2", "output_1")]
            result = replace(result, agreement=agreement(judge, *columns, [values[i] for i in chosen]))
    write_atomically(setup.folder / ANNOTATIONS, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    write_atomically(setup.folder / RESULT, json.dumps(result.to_json(), indent=1) + "\n")
    return result
