"""A model that is measured with its scores and texts kept on disk, so that a killed measurement goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.engine.reads import Read
from align.eval.kept import Kept
from align.models.subject import Subject, Values


class KeptSubject(Subject):
    """A subject whose rows are scored and answered in parts, each of which is a file once it is done.

    Processes of a launcher take parts, and not rows of one part, in turn; numbers do not depend on how many there are.

    Args:
        subject: the model as it was loaded.
        kept: where parts go.
        weights: a digest of the model, by which its parts are known.
    """

    def __init__(self, subject: Subject, kept: Kept, weights: str) -> None:
        super().__init__(
            subject.model,
            subject.tokenizer,
            subject.engine,
            name=subject.name,
            device=subject.device,
            system=subject.system,
            say=subject.say,
        )
        self._kept = kept
        self._about = [weights, str(next(subject.model.parameters()).dtype)]

    def _score(
        self,
        prompts: Sequence[Sequence[int]],
        branches: Sequence[Mapping[str, Sequence[int]]],
        reads: tuple[Read, ...],
        where: str,
    ) -> list[Values]:
        def work(some: Sequence[int]) -> list[Any]:
            found = super(KeptSubject, self)._score(
                [prompts[i] for i in some], [branches[i] for i in some], reads, where
            )
            return [
                {name: {read: values.tolist() for read, values in of.items()} for name, of in row.items()}
                for row in found
            ]

        rows = [
            [list(prompt), [[name, list(ids)] for name, ids in named.items()]]
            for prompt, named in zip(prompts, branches, strict=True)
        ]
        about = ["score", *self._about, [repr(read) for read in reads]]
        found = self._kept(rows, about, work, what=f"{where}s scored", done=f"{where}s scored")
        return [
            {name: {read: np.array(values) for read, values in of.items()} for name, of in row.items()} for row in found
        ]

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str], where: str
    ) -> list[str]:
        def work(some: Sequence[int]) -> list[str]:
            return super(KeptSubject, self)._generate([prompts[i] for i in some], max_new_tokens, stop, where)

        about = ["generate", *self._about, max_new_tokens, list(stop)]
        rows = [list(prompt) for prompt in prompts]
        return self._kept(rows, about, work, what=f"{where}s answered", done=f"{where}s answered")
