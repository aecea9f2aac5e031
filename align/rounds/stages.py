"""Sampling and judging of a round: prompts in parts of fixed size, dealt to the processes, each part done once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.data.tokens.samples import Sample, prompt_key
from align.errors import UserError
from align.judges.judge import CompareJudge, Judging, ScoreJudge
from align.recipe.sampling import Select
from align.rounds.policy import PAIRS
from align.runs.directory import write_atomically
from align.runs.processes import World
from align.sampling.choose import compare, score
from align.sampling.files import Rows, by_prompt, read_tables, sample_row, write_table

PART = 64  # prompts of a part; the same for any number of processes, since names of files stand for their content

COMPARED = 16  # samples of a part whose log-probs are compared with a server's

Stage = Literal["samples", "judged"]
Draw = Callable[[Sequence[Sequence[int]], Sequence[int], int], list[list[Sample]]]  # prompts, keys, step


@dataclass(frozen=True)
class Round:
    """One round's prompts (lines with ``row``, ``prompt`` and ``prompt_ids``) and the folder of its files."""

    number: int
    folder: Path
    prompts: Sequence[Mapping[str, Any]]

    @property
    def pairs(self) -> Path:
        """The file of the pairs; a round that has it needs no judge any more."""
        return self.folder / PAIRS

    @property
    def parts(self) -> range:
        return range(-(-len(self.prompts) // PART))

    def file(self, stage: Stage, part: int) -> Path:
        """The table of one part."""
        return self.folder / stage / f"part-{part:05d}.parquet"

    def missing(self, stage: Stage, world: World) -> list[int]:
        """Parts that this process has still to do."""
        return [part for part in self.parts[world.rank :: world.size] if not self.file(stage, part).exists()]

    @property
    def unjudged(self) -> int:
        """Prompts of the parts that are still to be judged."""
        left = [part for part in self.parts if not self.file("judged", part).exists()]
        return sum(len(self.prompts[part * PART : (part + 1) * PART]) for part in left)

    def lines(self, stage: Stage) -> Rows:
        """Lines of all parts, prompt by prompt."""
        return read_tables(self.file(stage, part) for part in self.parts)

    def server_logps(self) -> tuple[Rows, list[list[float]]]:
        """Samples that a server drew and its log-probs of them, as far as they were kept."""
        lines: Rows = []
        logps: list[list[float]] = []
        for part in self.parts:
            file = self.file("samples", part)
            if file.with_suffix(".json").exists():
                logps += (kept := json.loads(file.with_suffix(".json").read_text()))
                lines += read_tables([file])[: len(kept)]
        return lines, logps

    def notes(self) -> list[dict[str, Any]]:
        """What is known of each judged part beside its lines."""
        return [json.loads(self.file("judged", part).with_suffix(".json").read_text()) for part in self.parts]


def draw_part(
    round: Round, part: int, draw: Draw, logps: Callable[[], Sequence[Sequence[float]]] | None = None
) -> None:
    """Sample one part and write it; ``logps`` gives a server's log-probs of what was drawn, to compare with our own."""
    prompts = round.prompts[part * PART : (part + 1) * PART]
    ids = [list(prompt["prompt_ids"]) for prompt in prompts]
    keys = [prompt_key(own, prompt["row"]) for own, prompt in zip(ids, prompts, strict=True)]
    drawn = draw(ids, keys, round.number)
    lines = [sample_row(round.number, p, sample) for p, group in zip(prompts, drawn, strict=True) for sample in group]
    file = round.file("samples", part)
    if logps is not None:
        write_atomically(file.with_suffix(".json"), json.dumps([list(values) for values in logps()[:COMPARED]]) + "\n")
    write_table(file, lines)  # last: it is what says that the part is there


def judge_part(round: Round, part: int, judge: Judging, select: Select) -> None:
    """Judge the samples of one part, choose pairs, and write both, with an account of what was dropped."""
    groups = list(by_prompt(read_tables([round.file("samples", part)])))
    if isinstance(judge, ScoreJudge):
        notes = score(judge, groups, "pair", None, select.length_penalty)
    else:
        notes = compare(judge, groups, pairs=True)
    # the table last: it is what says that the part is there
    write_atomically(round.file("judged", part).with_suffix(".json"), json.dumps(notes) + "\n")
    write_table(round.file("judged", part), [line for group in groups for line in group])


def check_judge(judge: Judging, select: Select) -> None:
    """Refuse a way to select that the judge gives nothing for.

    Raises:
        UserError: with the other way.
    """
    if not isinstance(judge, ScoreJudge | CompareJudge):
        raise UserError(f"judge is {judge!r}; it must be a ScoreJudge, a CompareJudge, or align.recipe.sampling.Judge.")
    if isinstance(judge, ScoreJudge) and select.how != "best_worst":
        raise UserError(f"select.how is {select.how}, but {judge.name} gives scores: use best_worst.")
    if isinstance(judge, CompareJudge) and select.how != "tournament":
        raise UserError(f"select.how is {select.how}, but {judge.name} compares: use tournament.")
