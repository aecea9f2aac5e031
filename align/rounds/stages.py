"""Sampling and judging of a round: prompts in parts of fixed size, dealt to the processes, each part done once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow.parquet import read_metadata

from align.data.tokens.samples import Sample, prompt_key
from align.judges.judge import Judging, ScoreJudge
from align.recipe.sampling import Select
from align.rounds.policy import PAIRS
from align.runs.processes import World
from align.sampling.choose import compare, score
from align.sampling.files import Rows, by_prompt, sample_row
from align.sampling.parts import PartFiles, Stage

PART = 64  # prompts of a part; the same for any number of processes, since names of files stand for their content

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
    def paired(self) -> int:
        """How many pairs it has, once they are there."""
        return int(read_metadata(self.pairs).num_rows)

    @property
    def parts(self) -> range:
        return range(-(-len(self.prompts) // PART))

    @property
    def files(self) -> PartFiles:
        """Samples and judged samples in parts."""
        return PartFiles(self.folder)

    def missing(self, stage: Stage, world: World) -> list[int]:
        """Parts that this process has still to do."""
        return self.files.missing(stage, self.parts[world.rank :: world.size])

    @property
    def unjudged(self) -> int:
        """Prompts of the parts that are still to be judged."""
        return sum(len(self.of_part(part)) for part in self.files.missing("judged", self.parts))

    def of_part(self, part: int) -> Sequence[Mapping[str, Any]]:
        """Prompts of one part."""
        return self.prompts[part * PART : (part + 1) * PART]

    def lines(self, stage: Stage) -> Rows:
        """Lines of all parts, prompt by prompt."""
        return self.files.rows(stage, *self.parts)

    def notes(self) -> list[dict[str, Any]]:
        """What is known of each judged part beside its lines."""
        return [self.files.notes("judged", part) for part in self.parts]


def draw_part(round: Round, part: int, draw: Draw) -> None:
    """Sample one part and write it."""
    prompts = round.of_part(part)
    drawn = draw(*keyed(prompts), round.number)
    lines = [sample_row(round.number, p, sample) for p, group in zip(prompts, drawn, strict=True) for sample in group]
    round.files.write("samples", part, lines, {})


def keyed(prompts: Sequence[Mapping[str, Any]]) -> tuple[list[list[int]], list[int]]:
    """The tokens of prompts, and what their draws are keyed by."""
    ids = [list(prompt["prompt_ids"]) for prompt in prompts]
    return ids, [prompt_key(own, prompt["row"]) for own, prompt in zip(ids, prompts, strict=True)]


def judge_part(round: Round, part: int, judge: Judging, select: Select) -> None:
    """Judge the samples of one part, choose pairs, and write both, with an account of what was dropped."""
    groups = list(by_prompt(round.files.rows("samples", part)))
    if isinstance(judge, ScoreJudge):
        notes = score(judge, groups, "pair", None, select.length_penalty)
    else:
        notes = compare(judge, groups, pairs=True)
    round.files.write("judged", part, [line for group in groups for line in group], notes)
