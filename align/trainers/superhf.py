"""SuperHFTrainer: sample, keep the best by reward, and imitate them under a KL prior (arXiv 2310.16763)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from accelerate.utils import gather_object
from transformers import TrainingArguments

from align.data.batches.collator import TreeCollator
from align.data.tokens.prompts import prompt_of, prompt_rows
from align.data.tokens.samples import Sample
from align.engine.layout import Example, Tree
from align.errors import UserError
from align.judges.function import Function
from align.judges.judge import ScoreJudge
from align.judges.loading import as_judge
from align.objectives import Objective, SuperHF
from align.recipe.sampling import Judge, Sampling, Select
from align.sampling.select import penalised, top
from align.sampling.similarity import similarity
from align.trainers.online import OnlineTrainer, Picked, Row, check_settings

PAIRS = 64  # pairs of texts whose similarity is measured at a log step


class SuperHFTrainer(OnlineTrainer):
    """Supervised iterative learning from a model's own best completions.

    One optimizer step is one superbatch: ``args``' examples of a step are its prompts, ``sampling.samples`` the
    completions of each, ``select.keep`` those that are kept by the judge's score. So a cosine schedule over steps is
    one over superbatches. Blank completions are never kept. The objective is ``SuperHF()`` unless given; any that reads
    the branch ``survivor`` will do.

    Args:
        train_dataset: prompts, in any format; answers in it are left aside.
        judge: scores completions: a judge, settings of one (``align.Judge``), or a function ``(prompts, responses)``.
        select: ``how`` must be ``top``.
        allow_code: let settings import a function that they name.

    Raises:
        UserError: for whatever the caller can mend, with a sentence.
    """

    branch: ClassVar[str] = "survivor"

    def __init__(
        self,
        model: Any,
        objective: Objective | None = None,
        args: Any = None,
        *,
        sampling: Sampling,
        judge: ScoreJudge | Judge | Function,
        select: Select | None = None,
        allow_code: bool = False,
        **kwargs: Any,
    ) -> None:
        objective = SuperHF() if objective is None else objective
        check_settings(sampling=sampling, select=select)
        if isinstance(objective, Objective) and set(objective.branches) != {self.branch}:
            raise UserError(
                f"SuperHFTrainer trains on the branch {self.branch!r} alone, but the objective reads "
                f"{', '.join(objective.branches)}: set its branch, or use another trainer."
            )
        device = args.device if isinstance(args, TrainingArguments) else None
        found = as_judge(judge, allow_code=allow_code, device=device)
        if not isinstance(found, ScoreJudge):
            raise UserError(f"The best are kept by score, but {found.name} compares: give a judge that scores.")
        self.judge, self.select = found, select or Select(how="top")
        if self.select.how != "top":
            raise UserError(f"select.how is {self.select.how}, but survivors are chosen with: how: top.")
        if self.select.keep > sampling.samples:
            raise UserError(f"select.keep is {self.select.keep}, more than sampling.samples ({sampling.samples}).")
        if kwargs.get("eval_dataset") is not None:
            raise UserError("SuperHFTrainer takes no eval_dataset: there is no loss on rows that are not sampled.")
        self._seen: list[tuple[int, str, bool]] = []  # row, text and whether it was kept, since the last log
        super().__init__(model, objective, args, sampling=sampling, **kwargs)

    def make_collator(self) -> TreeCollator:
        return PromptCollator(self.objective.branches)

    def prepared(self, data: Any, tokenizer: Any, seed: int, say: Callable[[str], Any], **limits: Any) -> Any:
        return prompt_rows(data, tokenizer, say, **limits)

    def prompts(self, micro: PromptBatch) -> list[Row]:
        return list(zip(micro.examples, micro.texts, strict=True))

    def room(self) -> int:
        return self.select.keep * self.sampling.max_new_tokens

    def pick(self, rows: Sequence[Row], drawn: list[list[Sample]]) -> Picked:
        """The best of each prompt by the judge's score, less the length penalty."""
        flat = [(prompt_of(text or "null"), s) for (_, text), group in zip(rows, drawn, strict=True) for s in group]
        found = self.judge.score([prompt for prompt, _ in flat], [s.text for _, s in flat]) if flat else []
        values = iter(found)
        scores = [[next(values) for _ in group] for group in drawn]
        kept: list[Sequence[int]] = []
        for (example, _), group, mine in zip(rows, drawn, scores, strict=True):
            real = [i for i, sample in enumerate(group) if sample.text.strip()]
            ranked = penalised([mine[i] for i in real], [group[i].text for i in real], self.select.length_penalty)
            kept.append(sorted(real[i] for i in top(ranked, self.select.keep)))
            self._seen += [(example.row, sample.text, i in kept[-1]) for i, sample in enumerate(group)]
        if len(found) > 1 and len(set(found)) == 1:
            self.sampler.say_once(
                f"warning: {self.judge.name} gives all {len(found)} samples of step {self.state.global_step + 1} the "
                f"score {found[0]:g}, so the first of each prompt is kept"
            )
        self.count("reward/samples", found)
        self.count("reward/kept", [mine[i] for mine, places in zip(scores, kept, strict=True) for i in places])
        return Picked(kept, [list(mine) for mine in scores])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds how alike survivors are, and completions of different prompts, since the last log: METEOR in [0, 1]."""
        if "loss" in logs:
            logs |= self._similarities()
        super().log(logs, start_time)

    def sums(self) -> dict[str, Any]:
        return super().sums() | {"seen": self._seen}

    def take_up(self, sums: Sequence[Mapping[str, Any]]) -> None:
        super().take_up(sums)
        if self.accelerator.is_main_process:  # who drew what does not matter
            self._seen = [(row, text, kept) for one in sums for row, text, kept in one["seen"]]

    def _similarities(self) -> dict[str, float]:
        seen = gather_object(self._seen) if self.accelerator.num_processes > 1 else self._seen
        self._seen = []
        seen = sorted(seen)  # whichever process drew what
        groups = {"survivors": [s for s in seen if s[2]], "random": seen}
        pairs = {name: _pairs(group, self.state.global_step) for name, group in groups.items()}
        return {
            f"similarity/{name}": sum(similarity(a, b) for a, b in texts) / len(texts)
            for name, texts in pairs.items()
            if texts
        }


def _pairs(seen: Sequence[tuple[int, str, bool]], seed: int) -> list[tuple[str, str]]:
    """At most ``PAIRS`` pairs of texts that answer different prompts, drawn at random; none with one prompt alone."""
    if len({row for row, _, _ in seen}) < 2:
        return []
    draw = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < min(PAIRS, len(seen) * (len(seen) - 1) // 2):
        a, b = draw.sample(seen, 2)
        if a[0] != b[0]:
            pairs.append((a[1], b[1]))
    return pairs


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that wait for their completions: examples whose one tree has no branch yet, and their texts as JSON."""

    examples: tuple[Example, ...]
    texts: tuple[str, ...]


class PromptCollator(TreeCollator):
    """Rows with ``prompt_ids`` and ``prompt`` to a ``PromptBatch``."""

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        import torch

        batch = PromptBatch(tuple(self.example(row) for row in rows), tuple(row["prompt"] for row in rows))
        return {"input_ids": torch.zeros(1, 0, dtype=torch.long), "tree": batch}

    def example(self, row: Mapping[str, Any]) -> Example:
        return Example((Tree(row["prompt_ids"], ()),), int(row.get("row", -1)))
